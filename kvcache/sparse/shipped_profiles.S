// configs/sparse/*.json in the binary, and a table of (name, begin, end) over them. The list is
// written by CMake, one `profile` line per file; paths come from -I.
.macro profile name
  .section .rodata.lacuna_profiles, "a", @progbits
1:
  .incbin "\name\().json"
2:
  .byte 0
3:
  .asciz "\name"
  .section .data.rel.ro.lacuna_profiles, "aw", @progbits
  .quad 3b, 1b, 2b
.endm

.section .data.rel.ro.lacuna_profiles, "aw", @progbits
.balign 8
.global lacuna_profiles_begin
lacuna_profiles_begin:
.include "shipped_profiles.inc"
.section .data.rel.ro.lacuna_profiles, "aw", @progbits
.global lacuna_profiles_end
lacuna_profiles_end:

.section .note.GNU-stack, "", @progbits
