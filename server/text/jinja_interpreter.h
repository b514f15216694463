// Runs a Program against variables. One Render call, one thread.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "server/text/jinja_ast.h"
#include "server/text/jinja_runtime.h"

namespace lacuna::server::jinja {

// Variables of one block. Loops, macros and captures open a scope, `if` does not.
struct Scope {
  explicit Scope(const Scope* parent_scope) : parent(parent_scope) {}
  const Scope* parent;  // outlives this one: scopes stand on the stack of the interpreter
  std::map<std::string, Value, std::less<>> variables;
};

class Interpreter final {
 public:
  Interpreter(Runtime& runtime, int macro_depth_max)
      : runtime_(runtime), macro_depth_max_(macro_depth_max) {}

  Result<std::string> Run(const Program& program, const Dict& variables);
  int line() const { return line_; }  // last visited, for messages

 private:
  enum class Flow { kNext, kBreak, kContinue };
  using ScopePtr = std::shared_ptr<Scope>;

  // Statements.
  Result<Flow> Execute(const Body& body, const ScopePtr& scope);
  Result<Flow> ExecuteNode(const Node& node, const ScopePtr& scope);
  Result<Flow> ExecuteIf(const IfNode& node, const ScopePtr& scope);
  Result<Flow> ExecuteFor(const ForNode& node, const ScopePtr& scope);
  Result<ListPtr> LoopItems(const ForNode& node, const ScopePtr& scope);
  Status ExecuteSet(const SetNode& node, const ScopePtr& scope);
  Status ExecuteCall(const CallNode& node, const ScopePtr& scope);
  Result<Flow> ExecuteWith(const WithNode& node, const ScopePtr& scope);
  Status Define(const Macro& macro, const ScopePtr& scope);
  Status Assign(const Target& target, const Value& value, const ScopePtr& scope);
  Result<Value> Capture(const Body& body, const ScopePtr& scope);  // its output, as a string
  Status Write(std::string_view text);

  // Expressions.
  Result<Value> Evaluate(const Expr& expr, const ScopePtr& scope);
  Result<Value> EvaluateOperator(const Expr& expr, const ScopePtr& scope);
  Result<Value> EvaluateItems(const Expr& expr, const ScopePtr& scope);
  Result<Value> EvaluateCompare(const Expr& expr, const ScopePtr& scope);
  Result<Value> EvaluatePostfix(const Expr& expr, const ScopePtr& scope, size_t suffixes);
  Result<Value> ApplySuffix(const Suffix& suffix, const Value& value, const ScopePtr& scope);
  Result<Value> ApplySlice(const Suffix& suffix, const Value& value, const ScopePtr& scope);
  Result<Arguments> EvaluateArguments(const Suffix& suffix, const ScopePtr& scope);
  Result<Value> Lookup(const std::string& name, const Scope& scope) const;
  Result<Value> Call(const Value& callee, Arguments arguments);
  Result<Value> CallMacro(const Callable& callable, Arguments arguments);
  Status BindParameters(const Macro& macro, Arguments arguments, const ScopePtr& scope);

  Runtime& runtime_;
  const int macro_depth_max_;
  int macro_depth_ = 0;
  int line_ = 1;
  std::string* out_ = nullptr;
};

}  // namespace lacuna::server::jinja
