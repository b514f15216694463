#include "server/text/jinja_expression_parser.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

namespace lacuna::server::jinja {
namespace {

struct OperatorName {
  std::string_view text;
  Operator op;
};
constexpr std::array<OperatorName, 6> kComparisons = {{
    {"==", Operator::kEqual},
    {"!=", Operator::kNotEqual},
    {"<", Operator::kLess},
    {"<=", Operator::kLessEqual},
    {">", Operator::kGreater},
    {">=", Operator::kGreaterEqual},
}};
// Loosest first.
constexpr int kBinaryLevels = 4;
constexpr std::array<std::array<OperatorName, 4>, kBinaryLevels> kBinary = {{
    {{{"+", Operator::kAdd}, {"-", Operator::kSubtract}}},
    {{{"~", Operator::kConcat}}},
    {{{"*", Operator::kMultiply},
      {"/", Operator::kDivide},
      {"//", Operator::kFloorDivide},
      {"%", Operator::kModulo}}},
    {{{"**", Operator::kPower}}},
}};

template <size_t N>
std::optional<Operator> FindOperator(const std::array<OperatorName, N>& names, const Token& token) {
  if (token.kind != TokenKind::kOperator) return std::nullopt;
  for (const OperatorName& name : names) {
    if (!name.text.empty() && name.text == token.text) return name.op;
  }
  return std::nullopt;
}

std::unique_ptr<Expr> Make(Expr::Kind kind, int line) {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  return expr;
}

ExprPtr Literal(Value value, int line) {
  auto expr = Make(Expr::Kind::kLiteral, line);
  expr->literal = std::move(value);
  return expr;
}

ExprPtr Unary(Expr::Kind kind, ExprPtr operand) {
  auto expr = Make(kind, operand->line);
  expr->items.push_back(std::move(operand));
  return expr;
}

// `base` as an expression to which suffixes can be added.
ExprPtr WithSuffix(ExprPtr base, Suffix suffix) {
  if (base->kind != Expr::Kind::kPostfix) {
    auto expr = Make(Expr::Kind::kPostfix, base->line);
    expr->items.push_back(std::move(base));
    base = std::move(expr);
  }
  base->suffixes.push_back(std::move(suffix));
  return base;
}

}  // namespace

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : parser_(parser) { ++parser_.depth_; }
Status ExpressionParser::Nesting::status() const {
  return parser_.depth_ <= kParseDepthMax ? OkStatus() : parser_.Fail("nested too deep");
}

const Token& ExpressionParser::Peek(size_t ahead) const {
  return tokens_[std::min(next_ + ahead, tokens_.size() - 1)];
}
const Token& ExpressionParser::Next() {
  const Token& token = Peek();
  if (next_ + 1 < tokens_.size()) ++next_;
  return token;
}
bool ExpressionParser::IsName(std::string_view name) const {
  return Peek().kind == TokenKind::kName && Peek().text == name;
}
bool ExpressionParser::IsOperator(std::string_view op) const {
  return Peek().kind == TokenKind::kOperator && Peek().text == op;
}
bool ExpressionParser::SkipName(std::string_view name) {
  return IsName(name) ? (Next(), true) : false;
}
bool ExpressionParser::SkipOperator(std::string_view op) {
  return IsOperator(op) ? (Next(), true) : false;
}

Status ExpressionParser::Unexpected(int ahead) const {
  const size_t at = ahead < 0 && next_ > 0 ? next_ - 1 : next_ + static_cast<size_t>(ahead > 0);
  const Token& token = tokens_[std::min(at, tokens_.size() - 1)];
  switch (token.kind) {
    case TokenKind::kEnd:
      return ErrorAt(token.line, "unexpected end of the template");
    case TokenKind::kBlockEnd:
    case TokenKind::kOutputEnd:
      return ErrorAt(token.line, "unexpected end of the tag");
    case TokenKind::kName:
    case TokenKind::kOperator:
    case TokenKind::kInteger:
    case TokenKind::kFloat:
      return ErrorAt(token.line, "unexpected '" + token.text.substr(0, 40) + "'");
    default:
      return ErrorAt(token.line, "unexpected text");
  }
}

bool ExpressionParser::IsReserved(std::string_view name) {
  constexpr std::string_view kNames[] = {"true", "True", "false", "False", "none", "None", "not",
                                         "and",  "or",   "if",    "else",  "elif", "in",   "is"};
  return std::ranges::find(kNames, name) != std::end(kNames);
}

Result<ExprPtr> ExpressionParser::ParseTuple(bool with_condition) {
  const int line = Peek().line;
  LACUNA_ASSIGN_OR_RETURN(ExprPtr first, ParseExpression(with_condition));
  if (!IsOperator(",")) return first;
  auto tuple = Make(Expr::Kind::kTuple, line);
  tuple->items.push_back(std::move(first));
  while (SkipOperator(",")) {
    const bool at_end = Peek().kind == TokenKind::kBlockEnd ||
                        Peek().kind == TokenKind::kOutputEnd || IsOperator(")");
    if (at_end) break;
    LACUNA_ASSIGN_OR_RETURN(ExprPtr item, ParseExpression(with_condition));
    tuple->items.push_back(std::move(item));
  }
  return ExprPtr(std::move(tuple));
}

Result<ExprPtr> ExpressionParser::ParseExpression(bool with_condition) {
  const Nesting nesting(*this);
  LACUNA_RETURN_IF_ERROR(nesting.status());
  LACUNA_ASSIGN_OR_RETURN(ExprPtr value, ParseLogical(true));
  while (with_condition && SkipName("if")) {
    auto expr = Make(Expr::Kind::kCondition, value->line);
    LACUNA_ASSIGN_OR_RETURN(ExprPtr condition, ParseLogical(true));
    ExprPtr other;
    if (SkipName("else")) {
      LACUNA_ASSIGN_OR_RETURN(other, ParseExpression());
    }
    expr->items.push_back(std::move(value));
    expr->items.push_back(std::move(condition));
    const bool complete = other != nullptr;
    expr->items.push_back(std::move(other));
    value = std::move(expr);
    // `a if b if c` is left-nested, and no template means it.
    if (!complete && IsName("if")) return Unexpected();
  }
  return value;
}

Result<ExprPtr> ExpressionParser::ParseLogical(bool is_or) {
  const auto parse = [&] { return is_or ? ParseLogical(false) : ParseNot(); };
  LACUNA_ASSIGN_OR_RETURN(ExprPtr first, parse());
  const std::string_view name = is_or ? "or" : "and";
  if (!IsName(name)) return first;
  auto expr = Make(is_or ? Expr::Kind::kOr : Expr::Kind::kAnd, first->line);
  expr->items.push_back(std::move(first));
  while (SkipName(name)) {
    LACUNA_ASSIGN_OR_RETURN(ExprPtr item, parse());
    expr->items.push_back(std::move(item));
  }
  return ExprPtr(std::move(expr));
}

Result<ExprPtr> ExpressionParser::ParseNot() {
  if (!SkipName("not")) return ParseCompare();
  const Nesting nesting(*this);
  LACUNA_RETURN_IF_ERROR(nesting.status());
  LACUNA_ASSIGN_OR_RETURN(ExprPtr operand, ParseNot());
  return Unary(Expr::Kind::kNot, std::move(operand));
}

Result<ExprPtr> ExpressionParser::ParseCompare() {
  // The comparison that comes next; the "not" of "not in" is consumed.
  const auto next_operator = [&] {
    std::optional<Operator> op = FindOperator(kComparisons, Peek());
    if (!op && IsName("in")) op = Operator::kIn;
    if (!op && IsName("not") && Peek(1).kind == TokenKind::kName && Peek(1).text == "in") {
      Next();
      op = Operator::kNotIn;
    }
    return op;
  };
  LACUNA_ASSIGN_OR_RETURN(ExprPtr first, ParseBinary(0));
  std::optional<Operator> op = next_operator();
  if (!op) return first;
  std::unique_ptr<Expr> expr = Make(Expr::Kind::kCompare, first->line);
  expr->items.push_back(std::move(first));
  for (; op; op = next_operator()) {
    Next();
    LACUNA_ASSIGN_OR_RETURN(ExprPtr item, ParseBinary(0));
    expr->operators.push_back(*op);
    expr->items.push_back(std::move(item));
  }
  return ExprPtr(std::move(expr));
}

Result<ExprPtr> ExpressionParser::ParseBinary(int level) {
  if (level == kBinaryLevels) return ParseUnary(true);
  const auto next_operator = [&] {
    return FindOperator(kBinary[static_cast<size_t>(level)], Peek());
  };
  LACUNA_ASSIGN_OR_RETURN(ExprPtr first, ParseBinary(level + 1));
  std::optional<Operator> op = next_operator();
  if (!op) return first;
  std::unique_ptr<Expr> expr = Make(Expr::Kind::kBinary, first->line);
  expr->items.push_back(std::move(first));
  for (; op; op = next_operator()) {
    Next();
    LACUNA_ASSIGN_OR_RETURN(ExprPtr item, ParseBinary(level + 1));
    expr->operators.push_back(*op);
    expr->items.push_back(std::move(item));
  }
  return ExprPtr(std::move(expr));
}

Result<ExprPtr> ExpressionParser::ParseUnary(bool with_filters) {
  ExprPtr value;
  if (IsOperator("-") || IsOperator("+")) {
    const Nesting nesting(*this);
    LACUNA_RETURN_IF_ERROR(nesting.status());
    const auto kind = Next().text == "-" ? Expr::Kind::kNegative : Expr::Kind::kPositive;
    LACUNA_ASSIGN_OR_RETURN(ExprPtr operand, ParseUnary(false));
    value = Unary(kind, std::move(operand));
  } else {
    LACUNA_ASSIGN_OR_RETURN(value, ParsePrimary());
  }
  LACUNA_RETURN_IF_ERROR(ParseSuffixes(value));
  if (with_filters) LACUNA_RETURN_IF_ERROR(ParseFilterSuffixes(value));
  return value;
}

Result<ExprPtr> ExpressionParser::ParsePrimary() {
  const Token& token = Peek();
  const int line = token.line;
  if (token.kind == TokenKind::kInteger || token.kind == TokenKind::kFloat) return ParseNumber();
  if (token.kind == TokenKind::kString) {
    std::string text;  // neighbours join, as in Python
    while (Peek().kind == TokenKind::kString) text += Next().text;
    return Literal(Value::String(std::move(text)), line);
  }
  if (token.kind == TokenKind::kName) {
    const std::string name = token.text;
    Next();
    if (name == "true" || name == "True") return Literal(Value(true), line);
    if (name == "false" || name == "False") return Literal(Value(false), line);
    if (name == "none" || name == "None") return Literal(Value(None{}), line);
    if (IsReserved(name)) return Unexpected(-1);
    mentions_.caller |= name == "caller";
    mentions_.varargs |= name == "varargs";
    mentions_.kwargs |= name == "kwargs";
    auto expr = Make(Expr::Kind::kName, line);
    expr->name = name;
    return ExprPtr(std::move(expr));
  }
  if (SkipOperator("(")) return ParseParenthesis(line);
  if (SkipOperator("[")) return ParseList(line);
  if (SkipOperator("{")) return ParseDict(line);
  return Unexpected();
}

Result<ExprPtr> ExpressionParser::ParseNumber() {
  const Token& token = Next();
  const char* end = token.text.data() + token.text.size();
  if (token.kind == TokenKind::kInteger) {
    int64_t number = 0;
    if (std::from_chars(token.text.data(), end, number).ec != std::errc()) {
      return ErrorAt(token.line, "integer out of range");
    }
    return Literal(Value(number), token.line);
  }
  double number = 0;
  if (std::from_chars(token.text.data(), end, number).ec != std::errc()) {
    return ErrorAt(token.line, "number out of range");
  }
  return Literal(Value(number), token.line);
}

Result<ExprPtr> ExpressionParser::ParseParenthesis(int line) {
  if (SkipOperator(")")) return ExprPtr(Make(Expr::Kind::kTuple, line));
  LACUNA_ASSIGN_OR_RETURN(ExprPtr value, ParseTuple(true));
  if (!SkipOperator(")")) return Unexpected();
  return value;
}

Result<ExprPtr> ExpressionParser::ParseList(int line) {
  auto list = Make(Expr::Kind::kList, line);
  while (!SkipOperator("]")) {
    if (!list->items.empty() && !SkipOperator(",")) return Unexpected();
    if (SkipOperator("]")) break;
    LACUNA_ASSIGN_OR_RETURN(ExprPtr item, ParseExpression());
    list->items.push_back(std::move(item));
  }
  return ExprPtr(std::move(list));
}

Result<ExprPtr> ExpressionParser::ParseDict(int line) {
  auto dict = Make(Expr::Kind::kDict, line);
  while (!SkipOperator("}")) {
    if (!dict->items.empty() && !SkipOperator(",")) return Unexpected();
    if (SkipOperator("}")) break;
    LACUNA_ASSIGN_OR_RETURN(ExprPtr key, ParseExpression());
    if (!SkipOperator(":")) return Unexpected();
    LACUNA_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
    dict->items.push_back(std::move(key));
    dict->items.push_back(std::move(value));
  }
  return ExprPtr(std::move(dict));
}

Status ExpressionParser::ParseSuffixes(ExprPtr& base) {
  while (true) {
    const int line = Peek().line;
    Suffix suffix{Suffix::Kind::kCall, "", {}, line};
    if (SkipOperator(".")) {
      const Token& token = Next();
      if (token.kind == TokenKind::kName) {
        suffix.kind = Suffix::Kind::kAttribute;
        suffix.name = token.text;
      } else if (token.kind == TokenKind::kInteger) {
        --next_;
        suffix.kind = Suffix::Kind::kIndex;
        LACUNA_ASSIGN_OR_RETURN(ExprPtr index, ParseNumber());
        suffix.arguments.push_back({"", std::move(index)});
      } else {
        return Unexpected(-1);
      }
    } else if (SkipOperator("[")) {
      LACUNA_ASSIGN_OR_RETURN(suffix, ParseSubscript());
    } else if (IsOperator("(")) {
      LACUNA_ASSIGN_OR_RETURN(suffix.arguments, ParseArguments());
    } else {
      return OkStatus();
    }
    base = WithSuffix(std::move(base), std::move(suffix));
  }
}

Result<Suffix> ExpressionParser::ParseSubscript() {
  Suffix suffix{Suffix::Kind::kIndex, "", {}, Peek().line};
  size_t part = 0;
  ExprPtr parts[3];
  while (!SkipOperator("]")) {
    if (SkipOperator(":")) {
      suffix.kind = Suffix::Kind::kSlice;
      if (++part > 2) return Unexpected(-1);
    } else if (parts[part] != nullptr) {
      return Unexpected();
    } else {
      LACUNA_ASSIGN_OR_RETURN(parts[part], ParseExpression());
    }
  }
  if (suffix.kind == Suffix::Kind::kIndex && parts[0] == nullptr) return Unexpected(-1);
  for (size_t i = 0; i < (suffix.kind == Suffix::Kind::kSlice ? 3 : 1); ++i) {
    suffix.arguments.push_back({"", std::move(parts[i])});
  }
  return suffix;
}

Status ExpressionParser::ParseFilterSuffixes(ExprPtr& base) {
  while (true) {
    Suffix suffix{Suffix::Kind::kCall, "", {}, Peek().line};
    if (SkipOperator("|")) {
      suffix.kind = Suffix::Kind::kFilter;
      LACUNA_ASSIGN_OR_RETURN(suffix.name, ParseDottedName());
      if (IsOperator("(")) {
        LACUNA_ASSIGN_OR_RETURN(suffix.arguments, ParseArguments());
      }
    } else if (SkipName("is")) {
      LACUNA_ASSIGN_OR_RETURN(suffix, ParseTest());
    } else if (IsOperator("(")) {
      LACUNA_ASSIGN_OR_RETURN(suffix.arguments, ParseArguments());
    } else {
      return OkStatus();
    }
    base = WithSuffix(std::move(base), std::move(suffix));
  }
}

Result<std::vector<Suffix>> ExpressionParser::ParseFilters() {
  std::vector<Suffix> filters;
  do {
    Suffix suffix{Suffix::Kind::kFilter, "", {}, Peek().line};
    LACUNA_ASSIGN_OR_RETURN(suffix.name, ParseDottedName());
    if (IsOperator("(")) {
      LACUNA_ASSIGN_OR_RETURN(suffix.arguments, ParseArguments());
    }
    filters.push_back(std::move(suffix));
  } while (SkipOperator("|"));
  return filters;
}

Result<Suffix> ExpressionParser::ParseTest() {
  Suffix suffix{Suffix::Kind::kTest, "", {}, Peek().line};
  if (SkipName("not")) suffix.kind = Suffix::Kind::kTestNot;
  LACUNA_ASSIGN_OR_RETURN(suffix.name, ParseDottedName());
  if (IsOperator("(")) {
    LACUNA_ASSIGN_OR_RETURN(suffix.arguments, ParseArguments());
    return suffix;
  }
  // One argument may stand without brackets: x is divisibleby 3.
  const Token& token = Peek();
  const bool has_argument = token.kind == TokenKind::kString || token.kind == TokenKind::kInteger ||
                            token.kind == TokenKind::kFloat || IsOperator("[") || IsOperator("{") ||
                            (token.kind == TokenKind::kName &&
                             (!IsReserved(token.text) || IsName("true") || IsName("false") ||
                              IsName("none") || IsName("True") || IsName("False")));
  if (!has_argument || IsName("recursive")) return suffix;
  LACUNA_ASSIGN_OR_RETURN(ExprPtr argument, ParsePrimary());
  LACUNA_RETURN_IF_ERROR(ParseSuffixes(argument));
  suffix.arguments.push_back({"", std::move(argument)});
  return suffix;
}

Result<std::string> ExpressionParser::ParseDottedName() {
  if (Peek().kind != TokenKind::kName) return Unexpected();
  std::string name = Next().text;
  while (SkipOperator(".")) {
    if (Peek().kind != TokenKind::kName) return Unexpected();
    name += "." + Next().text;
  }
  return name;
}

Result<std::vector<Argument>> ExpressionParser::ParseArguments() {
  std::vector<Argument> arguments;
  Next();  // (
  while (!SkipOperator(")")) {
    if (!arguments.empty() && !SkipOperator(",")) return Unexpected();
    if (SkipOperator(")")) break;
    Argument argument;
    if (Peek().kind == TokenKind::kName && Peek(1).kind == TokenKind::kOperator &&
        Peek(1).text == "=") {
      argument.name = Next().text;
      Next();
    } else if (!arguments.empty() && !arguments.back().name.empty()) {
      return Fail("a positional argument after one with a name");
    }
    LACUNA_ASSIGN_OR_RETURN(argument.value, ParseExpression());
    arguments.push_back(std::move(argument));
  }
  return arguments;
}

}  // namespace lacuna::server::jinja
