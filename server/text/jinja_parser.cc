#include "server/text/jinja_parser.h"

#include "server/text/jinja_expression_parser.h"

namespace lacuna::server::jinja {
namespace {

using Names = std::initializer_list<std::string_view>;

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  Result<Program> Run() {
    Program program;
    LACUNA_ASSIGN_OR_RETURN(program.body, ParseBody({}));
    if (Peek().kind != TokenKind::kEnd) return Unexpected();
    return program;
  }

 private:
  struct LoopDepth {  // macros and call blocks begin outside any loop
    explicit LoopDepth(int& value, int now) : value_(value), saved_(value) { value = now; }
    ~LoopDepth() { value_ = saved_; }
    int& value_;
    int saved_;
  };

  // Up to a block tag with one of `ends`, of which the name is still to be read; or to the end.
  Result<Body> ParseBody(Names ends) {
    Body body;
    const Nesting nesting(*this);
    LACUNA_RETURN_IF_ERROR(nesting.status());
    while (true) {
      const Token& token = Peek();
      if (token.kind == TokenKind::kEnd) return body;
      if (token.kind == TokenKind::kText) {
        body.push_back({TextNode{token.text}, token.line});
        Next();
      } else if (token.kind == TokenKind::kOutputBegin) {
        Next();
        LACUNA_ASSIGN_OR_RETURN(ExprPtr value, ParseTuple(true));
        body.push_back({OutputNode{std::move(value)}, token.line});
        if (Next().kind != TokenKind::kOutputEnd) return Unexpected(-1);
      } else {
        if (Peek(1).kind != TokenKind::kName) return Unexpected(1);
        for (const std::string_view end : ends) {
          if (Peek(1).text == end) {
            Next();
            return body;
          }
        }
        LACUNA_RETURN_IF_ERROR(ParseBlock(body));
      }
    }
  }

  // A body whose end tag takes nothing: {% endset %} and the like.
  Result<Body> ParseBodyTo(std::string_view end) {
    LACUNA_ASSIGN_OR_RETURN(Body body, ParseBody({end}));
    LACUNA_RETURN_IF_ERROR(EndTag(end));
    return body;
  }
  Status EndTag(std::string_view end) {
    if (!SkipName(end)) return Fail("missing '" + std::string(end) + "'");
    return EndBlock();
  }
  Status EndBlock() { return Next().kind == TokenKind::kBlockEnd ? OkStatus() : Unexpected(-1); }

  Status ParseBlock(Body& body) {
    const int line = Next().line;
    const std::string name = Next().text;
    const auto add = [&](auto result) -> Status {
      LACUNA_RETURN_IF_ERROR(result.status());
      body.push_back({std::move(result).value(), line});
      return OkStatus();
    };
    if (name == "if") return add(ParseIf());
    if (name == "for") return add(ParseFor());
    if (name == "set") return add(ParseSet());
    if (name == "macro") return add(ParseMacro());
    if (name == "call") return add(ParseCall());
    if (name == "filter") return add(ParseFilterBlock());
    if (name == "with") return add(ParseWith());
    if (name == "generation") {
      LACUNA_RETURN_IF_ERROR(EndBlock());
      WithNode node;
      LACUNA_ASSIGN_OR_RETURN(node.body, ParseBodyTo("endgeneration"));
      body.push_back({std::move(node), line});
      return OkStatus();
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) return Fail("'" + name + "' outside a loop");
      Node::Data data = BreakNode{};
      if (name == "continue") data = ContinueNode{};
      body.push_back({std::move(data), line});
      return EndBlock();
    }
    return ErrorAt(line, "unknown tag '" + name + "'");
  }

  Result<IfNode> ParseIf() {
    IfNode node;
    while (true) {
      LACUNA_ASSIGN_OR_RETURN(ExprPtr condition, ParseTuple(false));
      LACUNA_RETURN_IF_ERROR(EndBlock());
      LACUNA_ASSIGN_OR_RETURN(Body body, ParseBody({"elif", "else", "endif"}));
      node.branches.push_back({std::move(condition), std::move(body)});
      if (SkipName("elif")) continue;
      if (SkipName("else")) {
        LACUNA_RETURN_IF_ERROR(EndBlock());
        LACUNA_ASSIGN_OR_RETURN(Body other, ParseBody({"endif"}));
        node.branches.push_back({nullptr, std::move(other)});
      }
      LACUNA_RETURN_IF_ERROR(EndTag("endif"));
      return node;
    }
  }

  Result<ForNode> ParseFor() {
    ForNode node;
    LACUNA_ASSIGN_OR_RETURN(node.target, ParseTarget(false));
    if (!SkipName("in")) return Unexpected();
    LACUNA_ASSIGN_OR_RETURN(node.sequence, ParseTuple(false));
    if (SkipName("if")) {
      LACUNA_ASSIGN_OR_RETURN(node.filter, ParseExpression());
    }
    if (IsName("recursive")) return Fail("recursive loops are not supported");
    LACUNA_RETURN_IF_ERROR(EndBlock());
    {
      const LoopDepth loop(loops_, loops_ + 1);
      LACUNA_ASSIGN_OR_RETURN(node.body, ParseBody({"else", "endfor"}));
    }
    if (SkipName("else")) {
      LACUNA_RETURN_IF_ERROR(EndBlock());
      LACUNA_ASSIGN_OR_RETURN(node.otherwise, ParseBody({"endfor"}));
    }
    LACUNA_RETURN_IF_ERROR(EndTag("endfor"));
    return node;
  }

  Result<SetNode> ParseSet() {
    SetNode node;
    LACUNA_ASSIGN_OR_RETURN(node.target, ParseTarget(true));
    if (SkipOperator("=")) {
      LACUNA_ASSIGN_OR_RETURN(node.value, ParseTuple(true));
      LACUNA_RETURN_IF_ERROR(EndBlock());
      return node;
    }
    if (SkipOperator("|")) {
      LACUNA_ASSIGN_OR_RETURN(node.filters, ParseFilters());
    }
    LACUNA_RETURN_IF_ERROR(EndBlock());
    LACUNA_ASSIGN_OR_RETURN(node.body, ParseBodyTo("endset"));
    return node;
  }

  Result<std::vector<Parameter>> ParseParameters() {
    std::vector<Parameter> parameters;
    if (!SkipOperator("(")) return Unexpected();
    while (!SkipOperator(")")) {
      if (!parameters.empty() && !SkipOperator(",")) return Unexpected();
      if (Peek().kind != TokenKind::kName) return Unexpected();
      Parameter parameter{Next().text, nullptr};
      if (SkipOperator("=")) {
        LACUNA_ASSIGN_OR_RETURN(parameter.fallback, ParseExpression());
      } else if (!parameters.empty() && parameters.back().fallback) {
        return Fail("a parameter without a default after one with a default");
      }
      parameters.push_back(std::move(parameter));
    }
    return parameters;
  }

  Status ParseMacroBody(Macro& macro, std::string_view end) {
    const LoopDepth loop(loops_, 0);
    const Mentions outer = mentions_;
    mentions_ = {};
    LACUNA_ASSIGN_OR_RETURN(macro.body, ParseBodyTo(end));
    macro.uses_caller = mentions_.caller;
    macro.uses_varargs = mentions_.varargs;
    macro.uses_kwargs = mentions_.kwargs;
    mentions_ = outer;
    return OkStatus();
  }

  Result<Macro> ParseMacro() {
    Macro macro;
    if (Peek().kind != TokenKind::kName) return Unexpected();
    macro.name = Next().text;
    LACUNA_ASSIGN_OR_RETURN(macro.parameters, ParseParameters());
    LACUNA_RETURN_IF_ERROR(EndBlock());
    LACUNA_RETURN_IF_ERROR(ParseMacroBody(macro, "endmacro"));
    return macro;
  }

  Result<CallNode> ParseCall() {
    CallNode node;
    node.caller.name = "caller";
    if (IsOperator("(")) {
      LACUNA_ASSIGN_OR_RETURN(node.caller.parameters, ParseParameters());
    }
    LACUNA_ASSIGN_OR_RETURN(node.call, ParseExpression());
    if (node.call->kind != Expr::Kind::kPostfix ||
        node.call->suffixes.back().kind != Suffix::Kind::kCall) {
      return Fail("'call' needs a call");
    }
    LACUNA_RETURN_IF_ERROR(EndBlock());
    LACUNA_RETURN_IF_ERROR(ParseMacroBody(node.caller, "endcall"));
    return node;
  }

  Result<FilterNode> ParseFilterBlock() {
    FilterNode node;
    LACUNA_ASSIGN_OR_RETURN(node.filters, ParseFilters());
    LACUNA_RETURN_IF_ERROR(EndBlock());
    LACUNA_ASSIGN_OR_RETURN(node.body, ParseBodyTo("endfilter"));
    return node;
  }

  Result<WithNode> ParseWith() {
    WithNode node;
    while (Peek().kind != TokenKind::kBlockEnd) {
      if (!node.targets.empty() && !SkipOperator(",")) return Unexpected();
      LACUNA_ASSIGN_OR_RETURN(Target target, ParseOneTarget(false));
      if (!SkipOperator("=")) return Unexpected();
      LACUNA_ASSIGN_OR_RETURN(ExprPtr value, ParseExpression());
      node.targets.push_back(std::move(target));
      node.values.push_back(std::move(value));
    }
    LACUNA_RETURN_IF_ERROR(EndBlock());
    LACUNA_ASSIGN_OR_RETURN(node.body, ParseBodyTo("endwith"));
    return node;
  }

  // a | a, b | (a, b), c | ns.field (where fields may be set)
  Result<Target> ParseTarget(bool fields) {
    LACUNA_ASSIGN_OR_RETURN(Target first, ParseOneTarget(fields));
    if (!IsOperator(",")) return first;
    Target all;
    all.parts.push_back(std::move(first));
    while (SkipOperator(",")) {
      if (Peek().kind != TokenKind::kName && !IsOperator("(")) break;
      if (IsName("in")) break;
      LACUNA_ASSIGN_OR_RETURN(Target part, ParseOneTarget(fields));
      all.parts.push_back(std::move(part));
    }
    return all;
  }

  Result<Target> ParseOneTarget(bool fields) {
    const Nesting nesting(*this);
    LACUNA_RETURN_IF_ERROR(nesting.status());
    Target target;
    if (SkipOperator("(")) {
      LACUNA_ASSIGN_OR_RETURN(target, ParseTarget(fields));
      if (!SkipOperator(")")) return Unexpected();
      return target;
    }
    if (Peek().kind != TokenKind::kName || IsReserved(Peek().text)) return Unexpected();
    target.name = Next().text;
    if (fields && SkipOperator(".")) {
      if (Peek().kind != TokenKind::kName) return Unexpected();
      target.field = Next().text;
    }
    return target;
  }

  int loops_ = 0;  // around this place, within this macro
};

}  // namespace

Result<Program> ParseTemplate(std::string_view source) {
  if (source.size() > kSourceBytesMax) return InvalidArgument("chat template: too long");
  LACUNA_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace lacuna::server::jinja
