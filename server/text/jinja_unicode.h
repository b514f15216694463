// Code points in UTF-8 strings as Python's str counts them. A byte that is not valid UTF-8 counts
// as one code point, so that every function is total. Stateless, any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lacuna::server::jinja {

// Decodes the code point at `pos` and moves `pos` past it; the byte itself for broken UTF-8.
char32_t NextCodePoint(std::string_view text, size_t& pos);
int64_t CodePointCount(std::string_view text);

bool IsSpace(char32_t code);      // str.isspace
bool IsPrintable(char32_t code);  // str.isprintable

// Bytes of white space at either end. With `chars`: of code points among them, as str.strip(chars).
std::string_view StripLeft(std::string_view text, const std::string* chars = nullptr);
std::string_view StripRight(std::string_view text, const std::string* chars = nullptr);

std::string ToUpper(std::string_view text);
std::string ToLower(std::string_view text);
std::string Capitalize(std::string_view text);  // str.capitalize
std::string TitleCase(std::string_view text);   // str.title

// First occurrence at or after `from`, in time linear in the text; npos when there is none.
size_t Find(std::string_view text, std::string_view needle, size_t from = 0);

}  // namespace lacuna::server::jinja
