#include "engine/loader/mapped_file.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace lacuna::engine {
namespace {

// O_NONBLOCK: opening a FIFO must not wait for its writer.
constexpr int kOpenFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;

// Links are followed as long as they stay in the folder; without openat2 (old kernels, some
// sandboxes) none is.
int OpenBeneath(int folder, const char* name) {
  open_how how{};
  how.flags = static_cast<uint64_t>(kOpenFlags);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  const long fd = syscall(SYS_openat2, folder, name, &how, sizeof(how));
  if (fd >= 0) return static_cast<int>(fd);
  if (errno != ENOSYS && errno != EPERM) return -1;
  return openat(folder, name, kOpenFlags | O_NOFOLLOW);
}

std::string Printable(std::string_view name) {
  std::string out;
  for (const char c : name.substr(0, 80)) out += c >= ' ' && c <= '~' ? c : '?';
  return out;
}

}  // namespace

MappedFile::~MappedFile() {
  if (owner_ == Owner::kMapping && bytes_ > 0) munmap(const_cast<void*>(data_), bytes_);
}

Result<std::unique_ptr<Folder>> Folder::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) {
    return NotFound(Printable(path) + ": expected a model folder: " + std::strerror(errno));
  }
  return std::unique_ptr<Folder>(new Folder(path, fd));
}

std::unique_ptr<Folder> Folder::InMemory(std::string name, std::vector<MemoryFile> files) {
  std::unique_ptr<Folder> folder(new Folder(std::move(name), -1));
  folder->files_ = std::move(files);
  return folder;
}

Folder::~Folder() {
  if (fd_ >= 0) close(fd_);
}

Result<std::unique_ptr<MappedFile>> Folder::Map(std::string_view name, int64_t bytes_max) const {
  const std::string prefix = Printable(name) + ": ";
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string_view::npos ||
      name.find('\\') != std::string_view::npos || name.find('\0') != std::string_view::npos) {
    return InvalidArgument(prefix + "expected a plain file name, found a path");
  }
  if (fd_ < 0) {
    const auto file = std::ranges::find(files_, name, &MemoryFile::name);
    if (file == files_.end()) return NotFound(prefix + "no such file");
    return std::make_unique<MappedFile>(file->bytes.data(), file->bytes.size(),
                                        MappedFile::Owner::kElsewhere);
  }
  const int fd = OpenBeneath(fd_, std::string(name).c_str());
  if (fd < 0) {
    if (errno == ENOENT) return NotFound(prefix + "no such file");
    const bool leads_out = errno == EXDEV || errno == ELOOP;
    return InvalidArgument(prefix + (leads_out ? "expected a file in the folder, found a link out"
                                               : std::strerror(errno)));
  }
  struct stat info {};
  const bool plain = fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  if (!plain || info.st_size < 0 || info.st_size > bytes_max) {
    close(fd);
    return InvalidArgument(prefix + "expected a plain file of at most " +
                           std::to_string(bytes_max) + " bytes" +
                           (plain ? ", found " + std::to_string(info.st_size) : ""));
  }
  const size_t bytes = static_cast<size_t>(info.st_size);
  void* data = nullptr;
  if (bytes > 0) data = mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (data == MAP_FAILED) return InvalidArgument(prefix + "mmap: " + std::strerror(errno));
  if (bytes > 0) madvise(data, bytes, MADV_WILLNEED);  // only a hint
  return std::make_unique<MappedFile>(data, bytes);
}

}  // namespace lacuna::engine
