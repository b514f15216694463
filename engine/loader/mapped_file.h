// Folder and MappedFile: the only way to the bytes of a model. Any thread; immutable.
//
// A Folder is a directory, or files that lie in memory already (the model linked into the binary).
// Files are opened under one directory handle; a name with a separator or "..", and a link that
// leads out of the folder, are errors. A file that another process cuts short while it is mapped
// ends this process (SIGBUS), as with every mmap loader: replace model files by renaming.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/core/status.h"

namespace lacuna::engine {

class MappedFile final {
 public:
  enum class Owner { kMapping, kElsewhere };
  MappedFile(const void* data, size_t bytes, Owner owner = Owner::kMapping)
      : data_(data), bytes_(bytes), owner_(owner) {}
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(data_), bytes_};
  }
  std::string_view text() const { return {static_cast<const char*>(data_), bytes_}; }

 private:
  const void* data_;
  size_t bytes_;
  Owner owner_;
};

struct MemoryFile final {
  std::string_view name;
  std::span<const std::byte> bytes;
};

class Folder final {
 public:
  static Result<std::unique_ptr<Folder>> Open(const std::string& path);
  // `files` and their bytes outlive the folder; `name` stands for its path.
  static std::unique_ptr<Folder> InMemory(std::string name, std::vector<MemoryFile> files);
  ~Folder();
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  // A plain file directly in the folder, at most bytes_max long. kNotFound: there is none;
  // kInvalidArgument: anything else. Messages begin with the name.
  Result<std::unique_ptr<MappedFile>> Map(std::string_view name, int64_t bytes_max) const;
  const std::string& path() const { return path_; }

 private:
  Folder(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  std::string path_;
  int fd_;  // -1: in memory
  std::vector<MemoryFile> files_;
};

inline constexpr int64_t kJsonFileBytesMax = 64 << 20;

}  // namespace lacuna::engine
