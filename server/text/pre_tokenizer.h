// PreTokenizer: cuts normalised text into the pieces that the model encodes one by one.
//
// Immutable after load; any thread. A step maps a list of pieces to a finer list; text that a step
// makes (a replaced space, a prefix) lives in the caller's PieceArena.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"
#include "server/text/tokenizer_json.h"

namespace lacuna::server {

struct Piece {
  std::string_view text;  // valid UTF-8, not empty
  bool at_start = false;  // begins at the first byte of the whole input
};
using Pieces = std::vector<Piece>;
using PieceArena = std::deque<std::string>;  // stable addresses

class PreTokenizer {
 public:
  // `json` may be null: no cut. Names an unknown type in its error.
  static Result<std::unique_ptr<PreTokenizer>> FromJson(const Json& json);
  virtual ~PreTokenizer() = default;

  // Replaces `pieces` by the finer list.
  virtual Status Apply(Pieces& pieces, PieceArena& arena) const = 0;
  // True if the model must read each byte of a piece as its ByteLevelChar. ByteLevel as the last
  // step says so instead of rewriting the text, which saves a copy of every piece.
  virtual bool EndsInByteLevel() const { return false; }
  // Makes a ByteLevel step that is not the last one rewrite the text itself.
  virtual void RewriteBytes() {}
};

}  // namespace lacuna::server
