#include "server/text/jinja_interpreter.h"

#include <algorithm>

namespace lacuna::server::jinja {
namespace {

class MacroDepth final {
 public:
  explicit MacroDepth(int& depth) : depth_(depth) { ++depth_; }
  ~MacroDepth() { --depth_; }
  MacroDepth(const MacroDepth&) = delete;
  MacroDepth& operator=(const MacroDepth&) = delete;

 private:
  int& depth_;
};

}  // namespace

Result<std::string> Interpreter::Run(const Program& program, const Dict& variables) {
  const auto scope = std::make_shared<Scope>(nullptr);
  for (const auto& [name, value] : variables.entries()) {
    scope->variables[*name.AsString()] = value;
  }
  std::string out;
  out_ = &out;
  LACUNA_RETURN_IF_ERROR(Execute(program.body, scope).status());
  return out;
}

// ---- statements ----

Result<Interpreter::Flow> Interpreter::Execute(const Body& body, const ScopePtr& scope) {
  const Nested nested(runtime_);
  LACUNA_RETURN_IF_ERROR(nested.status());
  for (const Node& node : body) {
    line_ = node.line;
    LACUNA_RETURN_IF_ERROR(runtime_.budget.Charge(1));
    LACUNA_ASSIGN_OR_RETURN(const Flow flow, ExecuteNode(node, scope));
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteNode(const Node& node, const ScopePtr& scope) {
  const auto next = [](const Status& status) -> Result<Flow> {
    if (!status.ok()) return status;
    return Flow::kNext;
  };
  if (const auto* text = std::get_if<TextNode>(&node.data)) return next(Write(text->text));
  if (const auto* output = std::get_if<OutputNode>(&node.data)) {
    LACUNA_ASSIGN_OR_RETURN(const Value value, Evaluate(*output->value, scope));
    if (const std::string* text = value.AsString()) return next(Write(*text));
    return next(AppendStr(value, runtime_.budget, *out_));
  }
  if (const auto* branch = std::get_if<IfNode>(&node.data)) return ExecuteIf(*branch, scope);
  if (const auto* loop = std::get_if<ForNode>(&node.data)) return ExecuteFor(*loop, scope);
  if (const auto* set = std::get_if<SetNode>(&node.data)) return next(ExecuteSet(*set, scope));
  if (const auto* macro = std::get_if<Macro>(&node.data)) return next(Define(*macro, scope));
  if (const auto* call = std::get_if<CallNode>(&node.data)) return next(ExecuteCall(*call, scope));
  if (const auto* with = std::get_if<WithNode>(&node.data)) return ExecuteWith(*with, scope);
  if (const auto* filter = std::get_if<FilterNode>(&node.data)) {
    LACUNA_ASSIGN_OR_RETURN(Value value, Capture(filter->body, scope));
    for (const Suffix& suffix : filter->filters) {
      LACUNA_ASSIGN_OR_RETURN(value, ApplySuffix(suffix, value, scope));
    }
    return next(AppendStr(value, runtime_.budget, *out_));
  }
  return std::holds_alternative<BreakNode>(node.data) ? Flow::kBreak : Flow::kContinue;
}

Result<Interpreter::Flow> Interpreter::ExecuteIf(const IfNode& node, const ScopePtr& scope) {
  for (const IfNode::Branch& branch : node.branches) {
    if (branch.condition != nullptr) {
      LACUNA_ASSIGN_OR_RETURN(const Value condition, Evaluate(*branch.condition, scope));
      if (!condition.Truthy()) continue;
    }
    return Execute(branch.body, scope);
  }
  return Flow::kNext;
}

// The sequence less what the loop's own `if` leaves out, so that loop.length counts the rest.
Result<ListPtr> Interpreter::LoopItems(const ForNode& node, const ScopePtr& scope) {
  LACUNA_ASSIGN_OR_RETURN(const Value sequence, Evaluate(*node.sequence, scope));
  LACUNA_ASSIGN_OR_RETURN(ListPtr all, Items(runtime_, sequence));
  if (node.filter == nullptr) return all;
  std::vector<Value> kept;
  for (const Value& item : all->items) {
    LACUNA_RETURN_IF_ERROR(runtime_.budget.Charge(1));
    const auto inner = std::make_shared<Scope>(scope.get());
    LACUNA_RETURN_IF_ERROR(Assign(node.target, item, inner));
    LACUNA_ASSIGN_OR_RETURN(const Value keep, Evaluate(*node.filter, inner));
    if (keep.Truthy()) kept.push_back(item);
  }
  LACUNA_ASSIGN_OR_RETURN(const Value list, Value::Sequence(std::move(kept)));
  return *list.As<ListPtr>();
}

Result<Interpreter::Flow> Interpreter::ExecuteFor(const ForNode& node, const ScopePtr& scope) {
  LACUNA_ASSIGN_OR_RETURN(const ListPtr list, LoopItems(node, scope));
  if (list->items.empty()) {
    return Execute(node.otherwise, std::make_shared<Scope>(scope.get()));
  }
  const auto loop = std::make_shared<Loop>();
  loop->list = list;
  for (size_t i = 0; i < list->items.size(); ++i) {
    LACUNA_RETURN_IF_ERROR(runtime_.budget.Charge(1));
    loop->index = i;
    const auto inner = std::make_shared<Scope>(scope.get());
    inner->variables.emplace("loop", Value(loop));
    LACUNA_RETURN_IF_ERROR(Assign(node.target, list->items[i], inner));
    LACUNA_ASSIGN_OR_RETURN(const Flow flow, Execute(node.body, inner));
    if (flow == Flow::kBreak) break;
  }
  return Flow::kNext;
}

Status Interpreter::ExecuteSet(const SetNode& node, const ScopePtr& scope) {
  Value value;
  if (node.value != nullptr) {
    LACUNA_ASSIGN_OR_RETURN(value, Evaluate(*node.value, scope));
  } else {
    LACUNA_ASSIGN_OR_RETURN(value, Capture(node.body, scope));
    for (const Suffix& suffix : node.filters) {
      LACUNA_ASSIGN_OR_RETURN(value, ApplySuffix(suffix, value, scope));
    }
  }
  return Assign(node.target, value, scope);
}

Status Interpreter::ExecuteCall(const CallNode& node, const ScopePtr& scope) {
  const Expr& call = *node.call;
  const Suffix& last = call.suffixes.back();
  LACUNA_ASSIGN_OR_RETURN(const Value callee,
                          EvaluatePostfix(call, scope, call.suffixes.size() - 1));
  LACUNA_ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(last, scope));
  auto caller = std::make_shared<Callable>();
  caller->name = "caller";
  caller->macro = &node.caller;
  caller->scope = scope;
  arguments.named.emplace_back("caller", Value(std::shared_ptr<const Callable>(caller)));
  LACUNA_ASSIGN_OR_RETURN(const Value value, Call(callee, std::move(arguments)));
  return AppendStr(value, runtime_.budget, *out_);
}

Result<Interpreter::Flow> Interpreter::ExecuteWith(const WithNode& node, const ScopePtr& scope) {
  const auto inner = std::make_shared<Scope>(scope.get());
  for (size_t i = 0; i < node.targets.size(); ++i) {
    LACUNA_ASSIGN_OR_RETURN(const Value value, Evaluate(*node.values[i], scope));
    LACUNA_RETURN_IF_ERROR(Assign(node.targets[i], value, inner));
  }
  return Execute(node.body, inner);
}

Status Interpreter::Define(const Macro& macro, const ScopePtr& scope) {
  auto callable = std::make_shared<Callable>();
  callable->name = macro.name;
  callable->macro = &macro;
  callable->scope = scope;
  scope->variables[macro.name] = Value(std::shared_ptr<const Callable>(std::move(callable)));
  return OkStatus();
}

Status Interpreter::Assign(const Target& target, const Value& value, const ScopePtr& scope) {
  if (target.parts.empty() && target.field.empty()) {
    scope->variables[target.name] = value;
    return OkStatus();
  }
  if (!target.field.empty()) {
    LACUNA_ASSIGN_OR_RETURN(const Value owner, Lookup(target.name, *scope));
    const auto* space = owner.As<std::shared_ptr<Namespace>>();
    if (space == nullptr) {
      return InvalidArgument("cannot set a field of '" + target.name + "': not a namespace");
    }
    (*space)->fields[target.field] = value;
    return OkStatus();
  }
  LACUNA_ASSIGN_OR_RETURN(const ListPtr items, Items(runtime_, value));
  if (items->items.size() != target.parts.size()) {
    return InvalidArgument("cannot unpack " + std::to_string(items->items.size()) +
                           " values into " + std::to_string(target.parts.size()) + " names");
  }
  for (size_t i = 0; i < target.parts.size(); ++i) {
    LACUNA_RETURN_IF_ERROR(Assign(target.parts[i], items->items[i], scope));
  }
  return OkStatus();
}

Result<Value> Interpreter::Capture(const Body& body, const ScopePtr& scope) {
  std::string text;
  std::string* const outer = std::exchange(out_, &text);
  const Result<Flow> flow = Execute(body, std::make_shared<Scope>(scope.get()));
  out_ = outer;
  LACUNA_RETURN_IF_ERROR(flow.status());
  return MakeString(runtime_, std::move(text));
}

Status Interpreter::Write(std::string_view text) {
  LACUNA_RETURN_IF_ERROR(runtime_.budget.CheckString(out_->size() + text.size()));
  LACUNA_RETURN_IF_ERROR(runtime_.budget.ChargeBytes(text.size()));
  out_->append(text);
  return OkStatus();
}

// ---- expressions ----

Result<Value> Interpreter::Evaluate(const Expr& expr, const ScopePtr& scope) {
  const Nested nested(runtime_);
  LACUNA_RETURN_IF_ERROR(nested.status());
  LACUNA_RETURN_IF_ERROR(runtime_.budget.Charge(1));
  line_ = expr.line;
  switch (expr.kind) {
    case Expr::Kind::kLiteral:
      return expr.literal;
    case Expr::Kind::kName:
      return Lookup(expr.name, *scope);
    case Expr::Kind::kList:
    case Expr::Kind::kTuple:
    case Expr::Kind::kDict:
      return EvaluateItems(expr, scope);
    case Expr::Kind::kCompare:
      return EvaluateCompare(expr, scope);
    case Expr::Kind::kPostfix:
      return EvaluatePostfix(expr, scope, expr.suffixes.size());
    default:
      return EvaluateOperator(expr, scope);
  }
}

Result<Value> Interpreter::EvaluateOperator(const Expr& expr, const ScopePtr& scope) {
  LACUNA_ASSIGN_OR_RETURN(
      Value value, Evaluate(*expr.items[expr.kind == Expr::Kind::kCondition ? 1 : 0], scope));
  switch (expr.kind) {
    case Expr::Kind::kNot:
      return Value(!value.Truthy());
    case Expr::Kind::kNegative:
      return Negate(value);
    case Expr::Kind::kPositive:
      return BinaryOperator(runtime_, Operator::kAdd, value, Value(int64_t{0}));
    case Expr::Kind::kCondition:
      if (value.Truthy()) return Evaluate(*expr.items[0], scope);
      if (expr.items[2] != nullptr) return Evaluate(*expr.items[2], scope);
      return Value::NotDefined("the condition was false and there is no else");
    case Expr::Kind::kAnd:
    case Expr::Kind::kOr:
      for (size_t i = 1; i < expr.items.size(); ++i) {
        if (value.Truthy() == (expr.kind == Expr::Kind::kOr)) break;
        LACUNA_ASSIGN_OR_RETURN(value, Evaluate(*expr.items[i], scope));
      }
      return value;
    default:  // kBinary
      for (size_t i = 1; i < expr.items.size(); ++i) {
        LACUNA_ASSIGN_OR_RETURN(const Value right, Evaluate(*expr.items[i], scope));
        LACUNA_ASSIGN_OR_RETURN(value,
                                BinaryOperator(runtime_, expr.operators[i - 1], value, right));
      }
      return value;
  }
}

Result<Value> Interpreter::EvaluateItems(const Expr& expr, const ScopePtr& scope) {
  std::vector<Value> items;
  items.reserve(expr.items.size());
  for (const ExprPtr& item : expr.items) {
    LACUNA_ASSIGN_OR_RETURN(Value value, Evaluate(*item, scope));
    items.push_back(std::move(value));
  }
  if (expr.kind != Expr::Kind::kDict) {
    return Value::Sequence(std::move(items), expr.kind == Expr::Kind::kTuple ? SequenceKind::kTuple
                                                                             : SequenceKind::kList);
  }
  std::vector<Dict::Entry> entries;
  for (size_t i = 0; i < items.size(); i += 2) {
    entries.emplace_back(std::move(items[i]), std::move(items[i + 1]));
  }
  LACUNA_ASSIGN_OR_RETURN(DictPtr dict, Dict::Make(std::move(entries)));
  return Value(std::move(dict));
}

Result<Value> Interpreter::EvaluateCompare(const Expr& expr, const ScopePtr& scope) {
  LACUNA_ASSIGN_OR_RETURN(Value left, Evaluate(*expr.items[0], scope));
  for (size_t i = 1; i < expr.items.size(); ++i) {
    LACUNA_ASSIGN_OR_RETURN(Value right, Evaluate(*expr.items[i], scope));
    LACUNA_ASSIGN_OR_RETURN(const bool holds,
                            Compare(runtime_, expr.operators[i - 1], left, right));
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

// The base of `expr` with its first `suffixes` applied.
Result<Value> Interpreter::EvaluatePostfix(const Expr& expr, const ScopePtr& scope,
                                           size_t suffixes) {
  LACUNA_ASSIGN_OR_RETURN(Value value, Evaluate(*expr.items[0], scope));
  for (size_t i = 0; i < suffixes; ++i) {
    LACUNA_RETURN_IF_ERROR(runtime_.budget.Charge(1));
    LACUNA_ASSIGN_OR_RETURN(value, ApplySuffix(expr.suffixes[i], value, scope));
  }
  return value;
}

Result<Value> Interpreter::ApplySuffix(const Suffix& suffix, const Value& value,
                                       const ScopePtr& scope) {
  if (suffix.kind == Suffix::Kind::kSlice) return ApplySlice(suffix, value, scope);
  LACUNA_ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(suffix, scope));
  line_ = suffix.line;
  switch (suffix.kind) {
    case Suffix::Kind::kAttribute:
      return GetAttribute(value, suffix.name);
    case Suffix::Kind::kIndex:
      return GetItem(runtime_, value, arguments.positional[0]);
    case Suffix::Kind::kCall:
      return Call(value, std::move(arguments));
    case Suffix::Kind::kFilter:
      return CallFilter(runtime_, suffix.name, value, arguments);
    default: {
      LACUNA_ASSIGN_OR_RETURN(const bool holds, CallTest(runtime_, suffix.name, value, arguments));
      return Value(holds == (suffix.kind == Suffix::Kind::kTest));
    }
  }
}

Result<Value> Interpreter::ApplySlice(const Suffix& suffix, const Value& value,
                                      const ScopePtr& scope) {
  Value parts[3];
  for (size_t i = 0; i < 3; ++i) {
    parts[i] = Value(None{});
    if (suffix.arguments[i].value != nullptr) {
      LACUNA_ASSIGN_OR_RETURN(parts[i], Evaluate(*suffix.arguments[i].value, scope));
    }
  }
  return GetSlice(runtime_, value, parts[0], parts[1], parts[2]);
}

Result<Arguments> Interpreter::EvaluateArguments(const Suffix& suffix, const ScopePtr& scope) {
  Arguments arguments;
  for (const Argument& argument : suffix.arguments) {
    LACUNA_ASSIGN_OR_RETURN(Value value, Evaluate(*argument.value, scope));
    if (argument.name.empty()) {
      arguments.positional.push_back(std::move(value));
    } else {
      arguments.named.emplace_back(argument.name, std::move(value));
    }
  }
  return arguments;
}

Result<Value> Interpreter::Lookup(const std::string& name, const Scope& scope) const {
  for (const Scope* at = &scope; at != nullptr; at = at->parent) {
    const auto found = at->variables.find(name);
    if (found != at->variables.end()) return found->second;
  }
  if (!HasGlobal(name)) return Value::NotDefined("'" + name + "' is undefined");
  auto callable = std::make_shared<Callable>();
  callable->name = name;
  return Value(std::shared_ptr<const Callable>(std::move(callable)));
}

Result<Value> Interpreter::Call(const Value& callee, Arguments arguments) {
  const auto* callable = callee.As<std::shared_ptr<const Callable>>();
  if (callable == nullptr) {
    if (callee.Is<Undefined>()) return UndefinedError(callee);
    return InvalidArgument("a " + std::string(callee.TypeName()) + " cannot be called");
  }
  const Callable& function = **callable;
  if (function.macro != nullptr) return CallMacro(function, std::move(arguments));
  if (function.self == nullptr) return CallGlobal(runtime_, function.name, arguments);
  return CallMethod(runtime_, *function.self, function.name, arguments);
}

Result<Value> Interpreter::CallMacro(const Callable& callable, Arguments arguments) {
  const MacroDepth depth(macro_depth_);
  if (macro_depth_ > macro_depth_max_) {
    return Status(StatusCode::kTooLong, "macros nested too deep");
  }
  const ScopePtr defined_in = callable.scope.lock();
  if (defined_in == nullptr) {
    return InvalidArgument("macro '" + callable.name + "' is used outside its block");
  }
  const auto scope = std::make_shared<Scope>(defined_in.get());
  LACUNA_RETURN_IF_ERROR(BindParameters(*callable.macro, std::move(arguments), scope));
  return Capture(callable.macro->body, scope);
}

Status Interpreter::BindParameters(const Macro& macro, Arguments arguments, const ScopePtr& scope) {
  auto& positional = arguments.positional;
  auto& named = arguments.named;
  const size_t count = std::min(positional.size(), macro.parameters.size());
  if (positional.size() > count && !macro.uses_varargs) {
    return InvalidArgument("macro '" + macro.name + "' takes at most " +
                           std::to_string(macro.parameters.size()) + " arguments");
  }
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    const auto at = std::find_if(named.begin(), named.end(), [&](const auto& argument) {
      return argument.first == parameter.name;
    });
    Value value = Value::NotDefined("parameter '" + parameter.name + "' was not provided");
    if (i < count) {
      value = std::move(positional[i]);
    } else if (at != named.end()) {
      value = std::move(at->second);
      named.erase(at);
    } else if (parameter.fallback != nullptr) {
      LACUNA_ASSIGN_OR_RETURN(value, Evaluate(*parameter.fallback, scope));
    }
    scope->variables[parameter.name] = std::move(value);
  }
  if (macro.uses_varargs) {
    positional.erase(positional.begin(), positional.begin() + static_cast<std::ptrdiff_t>(count));
    LACUNA_ASSIGN_OR_RETURN(scope->variables["varargs"],
                            Value::Sequence(std::move(positional), SequenceKind::kTuple));
  }
  std::vector<Dict::Entry> rest;
  for (auto& [name, value] : named) {
    if (name == "caller" && macro.uses_caller) {
      scope->variables[name] = std::move(value);
    } else if (macro.uses_kwargs) {
      rest.emplace_back(Value::String(name), std::move(value));
    } else {
      return InvalidArgument("macro '" + macro.name + "' has no parameter '" + name + "'");
    }
  }
  if (macro.uses_kwargs) {
    LACUNA_ASSIGN_OR_RETURN(DictPtr dict, Dict::Make(std::move(rest)));
    scope->variables["kwargs"] = Value(std::move(dict));
  }
  return OkStatus();
}

}  // namespace lacuna::server::jinja
