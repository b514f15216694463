#include "models/embedded.h"

#include <array>

// Each pair brackets one file; see embedded.S.
#define LACUNA_EMBEDDED(name)                                  \
  extern "C" const std::byte lacuna_embedded_##name##_begin[]; \
  extern "C" const std::byte lacuna_embedded_##name##_end[];
LACUNA_EMBEDDED(config)
LACUNA_EMBEDDED(generation_config)
LACUNA_EMBEDDED(index)
LACUNA_EMBEDDED(sparse)
LACUNA_EMBEDDED(shard_1)
LACUNA_EMBEDDED(shard_2)
LACUNA_EMBEDDED(tokenizer)
LACUNA_EMBEDDED(tokenizer_config)
#undef LACUNA_EMBEDDED

namespace lacuna::models {

std::span<const EmbeddedFile> EmbeddedModel() {
#define LACUNA_EMBEDDED(file, name)                                        \
  EmbeddedFile {                                                           \
    file, { lacuna_embedded_##name##_begin, lacuna_embedded_##name##_end } \
  }
  static const std::array kFiles = {
      LACUNA_EMBEDDED("config.json", config),
      LACUNA_EMBEDDED("generation_config.json", generation_config),
      LACUNA_EMBEDDED("model.safetensors.index.json", index),
      LACUNA_EMBEDDED("lacuna-sparse.json", sparse),
      LACUNA_EMBEDDED("model-00001-of-00002.safetensors", shard_1),
      LACUNA_EMBEDDED("model-00002-of-00002.safetensors", shard_2),
      LACUNA_EMBEDDED("tokenizer.json", tokenizer),
      LACUNA_EMBEDDED("tokenizer_config.json", tokenizer_config),
  };
#undef LACUNA_EMBEDDED
  return kFiles;
}

}  // namespace lacuna::models
