// Lets the library of the wheel run on manylinux_2_28, although it is built with newer C and C++ libraries. Defines
// the symbols that it would otherwise need from them, and exports none of these. libtorch_cpu.so exports
// std::filesystem and other parts of libstdc++ that are missing there. Wheels are for x86_64 only.

#ifdef __x86_64__

#include <dlfcn.h>
#include <pthread.h>
#include <sys/stat.h>

#include <cerrno>
#include <ctime>

#define TORCHTRT_HIDDEN __attribute__((visibility("hidden")))

// Makes calls of a function use the version of it that old libraries have. It jumps, because the result of dlopen() and
// dlsym() depends on the caller's address.
#define TORCHTRT_OLDER(name, version)                                                                 \
  __asm__(".symver old_" name "," name "@" version "\n.globl " name "\n.hidden " name "\n.type " name \
          ",@function\n" name ":\n.cfi_startproc\njmp old_" name                                      \
          "@PLT\n"                                                                                    \
          ".cfi_endproc\n.size " name ", . - " name "\n")

// glibc 2.32 and 2.34 gave them new versions when they moved into libc.
TORCHTRT_OLDER("dlerror", "GLIBC_2.2.5");
TORCHTRT_OLDER("dlopen", "GLIBC_2.2.5");
TORCHTRT_OLDER("dlsym", "GLIBC_2.2.5");
TORCHTRT_OLDER("pthread_mutex_trylock", "GLIBC_2.2.5");
TORCHTRT_OLDER("pthread_setname_np", "GLIBC_2.12");
TORCHTRT_OLDER("pthread_sigmask", "GLIBC_2.2.5");
// std::condition_variable::wait got a new version when it became noexcept.
TORCHTRT_OLDER("_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE", "GLIBCXX_3.4.11");

__asm__(".symver __fxstat,__fxstat@GLIBC_2.2.5");
__asm__(".symver __lxstat,__lxstat@GLIBC_2.2.5");
__asm__(".symver __xstat,__xstat@GLIBC_2.2.5");

extern "C" {

int __fxstat(int version, int fd, struct stat* status) noexcept;
int __lxstat(int version, const char* path, struct stat* status) noexcept;
int __xstat(int version, const char* path, struct stat* status) noexcept;

// Before glibc 2.33, every program had its own definition of these three.
constexpr int kStatVersion = 1;

TORCHTRT_HIDDEN int fstat(int fd, struct stat* status) noexcept {
  return __fxstat(kStatVersion, fd, status);
}

TORCHTRT_HIDDEN int lstat(const char* path, struct stat* status) noexcept {
  return __lxstat(kStatVersion, path, status);
}

TORCHTRT_HIDDEN int stat(const char* path, struct stat* status) noexcept {
  return __xstat(kStatVersion, path, status);
}

// libstdc++'s headers ask it whether they may count references without atomic operations.
extern TORCHTRT_HIDDEN char __libc_single_threaded;
char __libc_single_threaded = 0;

// New in glibc 2.30. Older ones wait by the time of day, as libstdc++ did there.
TORCHTRT_HIDDEN int pthread_cond_clockwait(
    pthread_cond_t* condition,
    pthread_mutex_t* mutex,
    clockid_t clock,
    const struct timespec* deadline) {
  static const auto of_glibc =
      reinterpret_cast<decltype(&pthread_cond_clockwait)>(dlsym(RTLD_DEFAULT, "pthread_cond_clockwait"));
  if (of_glibc != nullptr) {
    return of_glibc(condition, mutex, clock, deadline);
  }
  struct timespec now;
  struct timespec today;
  clock_gettime(clock, &now);
  clock_gettime(CLOCK_REALTIME, &today);
  constexpr long kSecond = 1'000'000'000;
  const long nanoseconds = today.tv_nsec + deadline->tv_nsec - now.tv_nsec; // above -kSecond, below 2 * kSecond
  const long carry = nanoseconds < 0 ? -1 : nanoseconds / kSecond;
  today.tv_sec += deadline->tv_sec - now.tv_sec + carry;
  today.tv_nsec = nanoseconds - carry * kSecond;
  return pthread_cond_timedwait(condition, mutex, &today);
}

} // extern "C"

#endif
