#include "core/runtime/trusted_path.h"

#include <grp.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <system_error>
#include <utility>
#include <vector>

#include "core/util/macros.h"

namespace torch_tensorrt::core::runtime {
namespace {

constexpr int kLinksFollowed = 40;        // as Linux does
constexpr size_t kNameBuffer = 16 * 1024; // bytes; an entry that needs more is shown as a number

[[noreturn]] void fail(const std::string& path, int code = errno) {
  throw std::system_error(code, std::generic_category(), "stat '" + path + "'");
}

// Returns the id that a user namespace shows for every user or group without a number in it.
unsigned read_overflow_id(const char* path) {
  constexpr unsigned kUsual = 65534;
  unsigned id = 0;
  return std::ifstream{path} >> id ? id : kUsual;
}

// Read at load time. If another thread were reading them during a fork, the child would wait for it forever.
const uid_t overflow_uid = read_overflow_id("/proc/sys/kernel/overflowuid");
const gid_t overflow_gid = read_overflow_id("/proc/sys/kernel/overflowgid");

bool is_our_group(gid_t group) {
  if (group == overflow_gid) {
    return false;
  }
  if (group == ::getegid()) {
    return true;
  }
  std::vector<gid_t> groups(static_cast<size_t>(std::max(::getgroups(0, nullptr), 0)));
  const int count = ::getgroups(static_cast<int>(groups.size()), groups.data());
  groups.resize(static_cast<size_t>(std::max(count, 0)));
  return std::ranges::find(groups, group) != groups.end();
}

std::string with_name(const char* name, unsigned id) {
  return name == nullptr ? std::to_string(id) : std::string(name) + " (" + std::to_string(id) + ")";
}

std::string user(uid_t id) {
  std::array<char, kNameBuffer> buffer{};
  passwd entry{};
  passwd* found = nullptr;
  ::getpwuid_r(id, &entry, buffer.data(), buffer.size(), &found);
  return with_name(found == nullptr ? nullptr : found->pw_name, id);
}

std::string group(gid_t id) {
  std::array<char, kNameBuffer> buffer{};
  ::group entry{};
  ::group* found = nullptr;
  ::getgrgid_r(id, &entry, buffer.data(), buffer.size(), &found);
  return with_name(found == nullptr ? nullptr : found->gr_name, id);
}

// Returns why `path` can't be trusted and what to do about it, or "" if it can be trusted.
std::string refusal(const std::string& path, const struct stat& status, const std::vector<uid_t>& users) {
  const bool is_sticky = S_ISDIR(status.st_mode) && (status.st_mode & S_ISVTX) != 0;
  const bool does_mode_count = S_ISREG(status.st_mode) || (S_ISDIR(status.st_mode) && !is_sticky);
  const mode_t writers = does_mode_count ? status.st_mode & (S_IWGRP | S_IWOTH) : 0;
  std::string problem;
  std::string remedy;
  if (std::ranges::find(users, status.st_uid) == users.end() && !is_our_group(status.st_gid)) {
    problem = "it belongs to " + user(status.st_uid) + ", and not to a group of this user";
    remedy = "chown -h " + std::to_string(::geteuid());
  } else if ((writers & S_IWOTH) != 0) {
    problem = "everybody may write it";
    remedy = "chmod o-w";
  } else if (writers != 0 && !is_our_group(status.st_gid)) {
    problem = "its group " + group(status.st_gid) + " may write it, and this user is not a member";
    remedy = "chmod g-w";
  } else {
    return "";
  }
  std::ostringstream text;
  text << "'" << path << "' can't be trusted: " << problem << " (owner " << user(status.st_uid) << ", mode " << std::oct
       << std::setfill('0') << std::setw(4) << (status.st_mode & 07777) << "). Try " << remedy << " '" << path
       << "', or list it in TORCHTRT_TRUSTED_PATHS";
  return text.str();
}

struct Walk {
  std::string path;                  // absolute and without links
  std::optional<struct stat> status; // none if nothing is there
  std::vector<uid_t> users;          // who may own a file there
  std::string refusal;               // why the first untrusted thing on the way is refused; empty if there is none
};

std::string read_link(const std::string& link, const std::string& path) {
  std::array<char, PATH_MAX> buffer{};
  const ssize_t size = ::readlink(link.c_str(), buffer.data(), buffer.size());
  if (size < 0) {
    fail(path);
  }
  return {buffer.data(), static_cast<size_t>(size)};
}

std::string directory_of(const std::string& path) {
  return path.substr(0, std::max<size_t>(path.rfind('/'), 1));
}

// Returns nullopt if a directory on the way is missing.
std::optional<Walk> walk(const std::string& path) {
  const auto status_of = [&path](const char* entry) {
    struct stat status{};
    if (::lstat(entry, &status) != 0) {
      fail(path);
    }
    return status;
  };
  struct stat status = status_of("/");
  const std::vector<uid_t> users{::geteuid(), status.st_uid};
  Walk way{.path = "/", .status = std::nullopt, .users = users, .refusal = refusal("/", status, users)};
  if (status.st_uid == overflow_uid) {
    std::erase(way.users, overflow_uid);
  }

  std::string rest; // of the path, still to be walked; never ends in "/", so that it is empty after the last name
  const auto go_first = [&rest](const std::string& before) {
    const std::string after = rest.empty() ? "" : "/" + rest;
    rest = before + (before.ends_with('/') ? "." : "") + after;
  };
  go_first(path);
  if (!path.starts_with('/')) {
    std::error_code error;
    go_first(std::filesystem::current_path(error).string());
    if (error) {
      fail(path, error.value());
    }
  }
  for (int links = 0; !rest.empty();) {
    if (!S_ISDIR(status.st_mode)) {
      fail(path, ENOTDIR);
    }
    const size_t end = std::min(rest.find('/'), rest.size());
    const std::string name = rest.substr(0, end);
    rest.erase(0, end + 1);
    if (name.empty() || name == ".") {
      continue;
    }
    if (name == "..") { // it has been checked
      way.path = directory_of(way.path);
      status = status_of(way.path.c_str());
      continue;
    }
    const std::string entry = (way.path == "/" ? "" : way.path) + "/" + name;
    struct stat found{};
    if (::lstat(entry.c_str(), &found) != 0) {
      if (errno != ENOENT) {
        fail(path);
      }
      if (!rest.empty()) {
        return std::nullopt;
      }
      way.path = entry;
      return way;
    }
    if (way.refusal.empty()) {
      const bool is_on_the_way = S_ISDIR(found.st_mode) || S_ISLNK(found.st_mode);
      const bool may_be_roots = is_on_the_way && (status.st_mode & S_ISVTX) == 0;
      way.refusal = refusal(entry, found, may_be_roots ? users : way.users);
    }
    if (!S_ISLNK(found.st_mode)) {
      way.path = entry;
      status = found;
      continue;
    }
    if (++links > kLinksFollowed) {
      fail(path, ELOOP);
    }
    const std::string target = read_link(entry, path);
    go_first(target);
    if (target.starts_with('/')) {
      way.path = "/";
      status = status_of("/");
    }
  }
  way.status = status;
  return way;
}

bool is_listed(const std::string& path) {
  const char* list = ::secure_getenv("TORCHTRT_TRUSTED_PATHS");
  if (list == nullptr) {
    return false;
  }
  std::istringstream prefixes{list};
  for (std::string prefix; std::getline(prefixes, prefix, ':');) {
    if (!prefix.starts_with('/')) {
      continue;
    }
    try {
      const std::optional<Walk> way = walk(prefix);
      if (way && (path + "/").starts_with(way->path == "/" ? "/" : way->path + "/")) {
        return true;
      }
    } catch (const std::system_error&) { // NOLINT(bugprone-empty-catch): such an entry lists nothing
    }
  }
  return false;
}

} // namespace

std::optional<TrustedPath> resolve_trusted(const std::string& path) {
  std::optional<Walk> way = walk(path);
  if (!way) {
    return std::nullopt;
  }
  const bool is_checked = !is_listed(way->path);
  if (is_checked && !way->refusal.empty()) {
    TORCHTRT_THROW_ERROR(way->refusal);
  }
  return TrustedPath{
      .path = std::move(way->path), .status = way->status, .is_listed = !is_checked, .users = std::move(way->users)};
}

void check_trusted(const TrustedPath& path, const struct stat& opened) {
  if (path.is_listed) {
    return;
  }
  const std::string reason = refusal(path.path, opened, path.users);
  if (!reason.empty()) {
    TORCHTRT_THROW_ERROR(reason);
  }
}

} // namespace torch_tensorrt::core::runtime
