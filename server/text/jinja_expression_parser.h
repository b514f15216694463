// The expression half of the parser; Parser (jinja_parser.cc) adds the statements. Precedence as in
// Jinja 3.1: if-else, or, and, not, comparisons, + -, ~, * / // %, **, sign, suffixes and filters.
// One per template, one thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"
#include "server/text/jinja_ast.h"
#include "server/text/jinja_lexer.h"

namespace lacuna::server::jinja {

class ExpressionParser {
 protected:
  // Names that the body of a macro reads which change what it may be given.
  struct Mentions {
    bool caller = false;
    bool varargs = false;
    bool kwargs = false;
  };

  // Held while inside one more level; check status() before going on.
  class Nesting final {
   public:
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --parser_.depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    Status status() const;

   private:
    ExpressionParser& parser_;
  };

  explicit ExpressionParser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}
  ~ExpressionParser() = default;

  const Token& Peek(size_t ahead = 0) const;
  const Token& Next();
  bool IsName(std::string_view name) const;
  bool IsOperator(std::string_view op) const;
  bool SkipName(std::string_view name);
  bool SkipOperator(std::string_view op);
  // "unexpected ..." about the token `ahead` of the next one (-1: the one just taken).
  Status Unexpected(int ahead = 0) const;
  Status Fail(const std::string& what) const { return ErrorAt(Peek().line, what); }
  static bool IsReserved(std::string_view name);

  Result<ExprPtr> ParseExpression(bool with_condition = true);
  // Also `a, b`, which is a tuple.
  Result<ExprPtr> ParseTuple(bool with_condition);
  // name, name(args), each after the first behind a '|'.
  Result<std::vector<Suffix>> ParseFilters();

  Mentions mentions_;

 private:
  Result<ExprPtr> ParseLogical(bool is_or);
  Result<ExprPtr> ParseNot();
  Result<ExprPtr> ParseCompare();
  Result<ExprPtr> ParseBinary(int level);
  Result<ExprPtr> ParseUnary(bool with_filters);
  Result<ExprPtr> ParsePrimary();
  Result<ExprPtr> ParseParenthesis(int line);
  Result<ExprPtr> ParseList(int line);
  Result<ExprPtr> ParseDict(int line);
  Result<ExprPtr> ParseNumber();
  Status ParseSuffixes(ExprPtr& base);        // . [ (
  Status ParseFilterSuffixes(ExprPtr& base);  // | is (
  Result<Suffix> ParseSubscript();
  Result<Suffix> ParseTest();
  Result<std::string> ParseDottedName();
  Result<std::vector<Argument>> ParseArguments();

  std::vector<Token> tokens_;
  size_t next_ = 0;
  int depth_ = 0;
};

}  // namespace lacuna::server::jinja
