// One read-only, page-aligned section per file of models/recall-12m (paths come from -I).
.macro embed name, file
  .section .rodata.lacuna_embedded, "a", @progbits
  .balign 4096
  .global lacuna_embedded_\name\()_begin
  .global lacuna_embedded_\name\()_end
lacuna_embedded_\name\()_begin:
  .incbin "\file"
lacuna_embedded_\name\()_end:
.endm

embed config, "config.json"
embed generation_config, "generation_config.json"
embed index, "model.safetensors.index.json"
embed sparse, "lacuna-sparse.json"
embed shard_1, "model-00001-of-00002.safetensors"
embed shard_2, "model-00002-of-00002.safetensors"
embed tokenizer, "tokenizer.json"
embed tokenizer_config, "tokenizer_config.json"

.section .note.GNU-stack, "", @progbits
