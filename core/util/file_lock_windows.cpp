#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <system_error>

#include "core/util/file_lock.h"
#include "core/util/macros.h"

namespace torch_tensorrt::core::util {
namespace {

[[noreturn]] void fail(const char* action, const std::string& path, const char* hint = "") {
  const int code = static_cast<int>(::GetLastError());
  TORCHTRT_THROW_ERROR(
      "Can't " << action << " lock file '" << path << "': " << std::system_category().message(code) << hint);
}

HANDLE to_handle(std::intptr_t file) {
  return reinterpret_cast<HANDLE>(file);
}

std::wstring to_wide(const std::string& path) {
  const int length = static_cast<int>(path.size());
  if (length == 0) {
    return {};
  }
  const int wide_length = ::MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), length, nullptr, 0);
  if (wide_length == 0) {
    fail("open", path, " (its path is not UTF-8)");
  }
  std::wstring wide(static_cast<size_t>(wide_length), L'\0');
  ::MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path.data(), length, wide.data(), wide_length);
  return wide;
}

// Returns INVALID_HANDLE_VALUE on failure, with GetLastError() as CreateFile leaves it.
HANDLE open_file(const std::wstring& path, DWORD access, DWORD disposition) {
  // Without FILE_SHARE_DELETE, as in filelock, nobody can remove or replace the file while it is open.
  return ::CreateFileW(
      path.c_str(),
      access,
      FILE_SHARE_READ | FILE_SHARE_WRITE,
      nullptr,
      disposition,
      FILE_ATTRIBUTE_NORMAL | FILE_FLAG_OPEN_REPARSE_POINT,
      nullptr);
}

// Returns false on failure, with GetLastError() as LockFileEx leaves it.
bool lock_file(HANDLE file, DWORD flags) {
  OVERLAPPED first_byte{};
  return ::LockFileEx(file, flags, 0, 1, 0, &first_byte) != 0;
}

} // namespace

std::int64_t FileLock::LockHandle::current_process() noexcept {
  return ::GetCurrentProcessId();
}

bool FileLock::LockHandle::open(const std::string& path) {
  const std::wstring wide_path = to_wide(path);
  HANDLE file = open_file(wide_path, GENERIC_READ | GENERIC_WRITE, OPEN_ALWAYS);
  if (file == INVALID_HANDLE_VALUE &&
      (::GetLastError() == ERROR_ACCESS_DENIED || ::GetLastError() == ERROR_WRITE_PROTECT)) {
    const DWORD code = ::GetLastError();
    file = open_file(wide_path, GENERIC_READ, OPEN_EXISTING); // LockFileEx needs no write access
    if (file == INVALID_HANDLE_VALUE && ::GetLastError() != ERROR_SHARING_VIOLATION) {
      ::SetLastError(code);
    }
  }
  if (file != INVALID_HANDLE_VALUE) {
    file_ = reinterpret_cast<std::intptr_t>(file);
    return true;
  }
  if (::GetLastError() == ERROR_SHARING_VIOLATION) { // a virus scanner or a backup has it open exclusively
    return false;
  }
  fail("open", path);
}

bool FileLock::LockHandle::lock(const std::string& path, Mode mode, bool wait) {
  const DWORD flags = (mode == Mode::kShared ? 0 : LOCKFILE_EXCLUSIVE_LOCK) | (wait ? 0 : LOCKFILE_FAIL_IMMEDIATELY);
  if (lock_file(to_handle(file_), flags)) {
    owner_ = current_process();
    return true;
  }
  if (!wait && ::GetLastError() == ERROR_LOCK_VIOLATION) {
    return false;
  }
  fail("lock", path);
}

bool FileLock::LockHandle::is_current(const std::string& path) const {
  BY_HANDLE_FILE_INFORMATION ours{};
  if (!::GetFileInformationByHandle(to_handle(file_), &ours)) {
    fail("examine", path);
  }
  if ((ours.dwFileAttributes & FILE_ATTRIBUTE_REPARSE_POINT) != 0) {
    TORCHTRT_THROW_ERROR("Can't use '" << path << "' as a lock file: a symbolic link is refused here");
  }
  return true; // see open_file
}

void FileLock::LockHandle::close() noexcept {
  if (!is_open()) {
    return;
  }
  // Closing alone would release the lock too, but Windows does not guarantee when.
  if (owns_lock()) {
    OVERLAPPED first_byte{};
    ::UnlockFileEx(to_handle(file_), 0, 1, 0, &first_byte);
  }
  ::CloseHandle(to_handle(file_));
  file_ = kNoFile;
  owner_ = kNobody;
}

} // namespace torch_tensorrt::core::util
