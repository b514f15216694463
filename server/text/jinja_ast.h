// The parsed template. Immutable after Parse, owned by Program, shared by every Render.
//
// Chains that a source can make long at no nesting (a + b + c, x.y.z | f | g, elif) are flat
// vectors, so the tree is only as high as brackets and blocks are nested, and the parser bounds
// that: walking and freeing it may recurse.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "server/text/jinja_value.h"

namespace lacuna::server::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Argument {
  std::string name;  // empty: positional
  ExprPtr value;
};

// What may follow a primary expression.
struct Suffix {
  enum class Kind { kAttribute, kIndex, kSlice, kCall, kFilter, kTest, kTestNot };
  Kind kind;
  std::string name;                 // of the attribute, filter or test
  std::vector<Argument> arguments;  // kIndex: one; kSlice: three, each may be null
  int line = 0;
};

enum class Operator {
  kAdd,
  kSubtract,
  kConcat,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn,
};

struct Expr {
  enum class Kind {
    kLiteral,
    kName,
    kList,
    kTuple,
    kDict,       // items: key, value, key, value ...
    kBinary,     // left to right: items[0] operators[0] items[1] operators[1] ...
    kCompare,    // chained as in Python: a < b < c
    kAnd,        // two items or more
    kOr,         // two items or more
    kNot,        // one item
    kNegative,   // one item
    kPositive,   // one item
    kCondition,  // items: value, condition, other value (may be null)
    kPostfix,    // items[0], then suffixes
  };
  Kind kind;
  int line = 0;
  Value literal;
  std::string name;
  std::vector<ExprPtr> items;
  std::vector<Operator> operators;
  std::vector<Suffix> suffixes;
};

// Where set and for store: a name, a field of a namespace, or several at once.
struct Target {
  std::string name;
  std::string field;
  std::vector<Target> parts;
};

struct Node;
using Body = std::vector<Node>;

struct TextNode {
  std::string text;
};
struct OutputNode {
  ExprPtr value;
};
struct IfNode {
  struct Branch {
    ExprPtr condition;  // null: else
    Body body;
  };
  std::vector<Branch> branches;
};
struct ForNode {
  Target target;
  ExprPtr sequence;
  ExprPtr filter;  // may be null
  Body body;
  Body otherwise;
};
struct SetNode {
  Target target;
  ExprPtr value;  // null: the text of body, through filters
  std::vector<Suffix> filters;
  Body body;
};
struct Parameter {
  std::string name;
  ExprPtr fallback;  // may be null
};
struct Macro {
  std::string name;
  std::vector<Parameter> parameters;
  Body body;
  bool uses_caller = false;
  bool uses_varargs = false;
  bool uses_kwargs = false;
};
struct CallNode {
  Macro caller;
  ExprPtr call;  // kPostfix that ends in kCall
};
struct FilterNode {
  std::vector<Suffix> filters;
  Body body;
};
struct WithNode {
  std::vector<Target> targets;
  std::vector<ExprPtr> values;
  Body body;  // `generation` blocks are this with no target
};
struct BreakNode {};
struct ContinueNode {};

struct Node {
  using Data = std::variant<TextNode, OutputNode, IfNode, ForNode, SetNode, Macro, CallNode,
                            FilterNode, WithNode, BreakNode, ContinueNode>;
  Data data;
  int line = 0;
};

struct Program {
  Body body;
};

}  // namespace lacuna::server::jinja
