// For LD_PRELOAD. Lets a test watch the calls that one thread makes into the C library, make them fail, or make the
// calls of all threads hang. Programs compiled for large files call functions with other names. On 64-bit Linux those
// do the same.

#undef _FORTIFY_SOURCE // its inline functions would replace the ones defined here

#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

namespace {

// Runs before the call that it names. Returns 0 to let the call be made, the errno with which it is to fail, or -n if
// it may move at most n bytes.
using Observer = int (*)(const char* call);

thread_local Observer observer = nullptr;

std::atomic<const char*> hanging{nullptr};
std::atomic<int> hung{0};

int ask(const char* call) {
  if (const char* name = hanging; name != nullptr && std::strcmp(name, call) == 0) {
    ++hung;
    for (;;) {
      ::pause();
    }
  }
  const Observer asked = std::exchange(observer, nullptr); // the observer's own calls are not observed
  // readdir does not set it at the end of a directory.
  const int before = errno;
  const int answer = asked == nullptr ? 0 : asked(call);
  errno = before;
  observer = asked;
  return answer;
}

bool fails(int answer) {
  if (answer > 0) {
    errno = answer;
  }
  return answer > 0;
}

size_t limited(size_t size, int answer) {
  return answer < 0 ? std::min(size, static_cast<size_t>(-answer)) : size;
}

template <class Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

int open_observed(const char* name, const char* path, int flags, mode_t mode) {
  return fails(ask("open")) ? -1 : real<int(const char*, int, ...)>(name)(path, flags, mode);
}

} // namespace

#define TORCHTRT_OBSERVED(symbol, name, parameters, ...)                       \
  int symbol parameters {                                                      \
    return fails(ask(name)) ? -1 : real<int parameters>(#symbol)(__VA_ARGS__); \
  }

extern "C" {

// Sets the observer of the calling thread until the next call of this function. nullptr sets none.
void observe_calls(Observer next) {
  observer = next;
}

// From now on, calls with that name never return, in any thread.
void hang_calls(const char* name) {
  hanging = ::strdup(name);
}

int hung_calls() {
  return hung;
}

#define TORCHTRT_OPEN(symbol)                                                   \
  int symbol(const char* path, int flags, ...) {                                \
    va_list arguments;                                                          \
    va_start(arguments, flags);                                                 \
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0; \
    va_end(arguments);                                                          \
    return open_observed(#symbol, path, flags, mode);                           \
  }

TORCHTRT_OPEN(open)
TORCHTRT_OPEN(open64)

TORCHTRT_OBSERVED(stat, "stat", (const char* path, struct stat* status) noexcept, path, status)
TORCHTRT_OBSERVED(stat64, "stat", (const char* path, struct stat64* status) noexcept, path, status)
TORCHTRT_OBSERVED(lstat, "lstat", (const char* path, struct stat* status) noexcept, path, status)
TORCHTRT_OBSERVED(lstat64, "lstat", (const char* path, struct stat64* status) noexcept, path, status)
TORCHTRT_OBSERVED(fstat, "fstat", (int fd, struct stat* status) noexcept, fd, status)
TORCHTRT_OBSERVED(fstat64, "fstat", (int fd, struct stat64* status) noexcept, fd, status)
// Programs compiled for glibc before 2.33 call these.
TORCHTRT_OBSERVED(__xstat, "stat", (int version, const char* path, struct stat* status) noexcept, version, path, status)
TORCHTRT_OBSERVED(
    __xstat64,
    "stat",
    (int version, const char* path, struct stat64* status) noexcept,
    version,
    path,
    status)
TORCHTRT_OBSERVED(
    __lxstat,
    "lstat",
    (int version, const char* path, struct stat* status) noexcept,
    version,
    path,
    status)
TORCHTRT_OBSERVED(
    __lxstat64,
    "lstat",
    (int version, const char* path, struct stat64* status) noexcept,
    version,
    path,
    status)
TORCHTRT_OBSERVED(__fxstat, "fstat", (int version, int fd, struct stat* status) noexcept, version, fd, status)
TORCHTRT_OBSERVED(__fxstat64, "fstat", (int version, int fd, struct stat64* status) noexcept, version, fd, status)
TORCHTRT_OBSERVED(fsync, "fsync", (int fd), fd)
TORCHTRT_OBSERVED(rename, "rename", (const char* from, const char* to) noexcept, from, to)
TORCHTRT_OBSERVED(ftruncate, "ftruncate", (int fd, off_t size) noexcept, fd, size)
TORCHTRT_OBSERVED(ftruncate64, "ftruncate", (int fd, off64_t size) noexcept, fd, size)
TORCHTRT_OBSERVED(fchmod, "fchmod", (int fd, mode_t mode) noexcept, fd, mode)
TORCHTRT_OBSERVED(fchown, "fchown", (int fd, uid_t owner, gid_t group) noexcept, fd, owner, group)
TORCHTRT_OBSERVED(futimens, "futimens", (int fd, const struct timespec times[2]) noexcept, fd, times)
TORCHTRT_OBSERVED(
    utimensat,
    "utimensat",
    (int directory, const char* path, const struct timespec times[2], int flags) noexcept,
    directory,
    path,
    times,
    flags)
TORCHTRT_OBSERVED(link, "link", (const char* from, const char* to) noexcept, from, to)
// CPython 3.14 calls it for os.link().
TORCHTRT_OBSERVED(
    linkat,
    "link",
    (int old_directory, const char* from, int new_directory, const char* to, int flags) noexcept,
    old_directory,
    from,
    new_directory,
    to,
    flags)
TORCHTRT_OBSERVED(mkdir, "mkdir", (const char* path, mode_t mode) noexcept, path, mode)
TORCHTRT_OBSERVED(unlink, "unlink", (const char* path) noexcept, path)
TORCHTRT_OBSERVED(flock, "flock", (int fd, int operation) noexcept, fd, operation)

DIR* opendir(const char* path) {
  return fails(ask("opendir")) ? nullptr : real<DIR*(const char*)>("opendir")(path);
}

// The C++ library opens directories with it.
int openat(int directory, const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  return fails(ask((flags & O_DIRECTORY) != 0 ? "opendir" : "open"))
      ? -1
      : real<int(int, const char*, int, ...)>("openat")(directory, path, flags, mode);
}

dirent* readdir(DIR* directory) {
  return fails(ask("readdir")) ? nullptr : real<dirent*(DIR*)>("readdir")(directory);
}

dirent64* readdir64(DIR* directory) {
  return fails(ask("readdir")) ? nullptr : real<dirent64*(DIR*)>("readdir64")(directory);
}

ssize_t readlink(const char* path, char* buffer, size_t size) noexcept {
  return fails(ask("readlink")) ? -1 : real<ssize_t(const char*, char*, size_t)>("readlink")(path, buffer, size);
}

ssize_t pread(int fd, void* buffer, size_t size, off_t offset) {
  const int answer = ask("read");
  return fails(answer) ? -1
                       : real<ssize_t(int, void*, size_t, off_t)>("pread")(fd, buffer, limited(size, answer), offset);
}

ssize_t preadv64v2(int fd, const iovec* pieces, int count, off64_t offset, int flags) {
  const int answer = ask("read");
  if (answer == 0) {
    return real<ssize_t(int, const iovec*, int, off64_t, int)>("preadv64v2")(fd, pieces, count, offset, flags);
  }
  return fails(answer) ? -1 : ::pread64(fd, pieces->iov_base, limited(pieces->iov_len, answer), offset);
}

// Python uses it where preadv64v2 is missing.
ssize_t preadv64(int fd, const iovec* pieces, int count, off64_t offset) {
  return ::preadv64v2(fd, pieces, count, offset, 0);
}

ssize_t pwrite(int fd, const void* bytes, size_t size, off_t offset) {
  const int answer = ask("write");
  return fails(answer)
      ? -1
      : real<ssize_t(int, const void*, size_t, off_t)>("pwrite")(fd, bytes, limited(size, answer), offset);
}

ssize_t pwrite64(int fd, const void* bytes, size_t size, off64_t offset) {
  return ::pwrite(fd, bytes, size, offset);
}

// The C++ runtime writes its log with it.
size_t fwrite(const void* bytes, size_t size, size_t count, FILE* file) {
  ask("fwrite");
  return real<size_t(const void*, size_t, size_t, FILE*)>("fwrite")(bytes, size, count, file);
}

} // extern "C"
