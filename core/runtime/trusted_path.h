#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>
#include <vector>

namespace torch_tensorrt::core::runtime {

// Decides whose kernels may be loaded, and where kernels may be saved. Kernels are code, so a path is trusted only if
// nobody but the process's user, root and members of the process's groups could have put a file there. All ids are
// effective ids. Root is the owner of "/", whose number differs in a user namespace.
//
// - Everything on the way (directories, symbolic links, the file) belongs to the user or root, or to a group of this
// process.
// - Directories without the sticky bit, and the file, are not writable by everybody, nor by a group that is not one of
// this process's.
//
// A user namespace shows one number, the overflow id, for every user who has no number in it. That may be root or any
// stranger. If the owner of "/" has this id, then everybody with this id counts as root, but only as the owner of
// directories and symbolic links that are not in a sticky directory. So a stranger's directory may count as root's
// there, but a stranger's file never does. The overflow id of groups never counts as a group of this process, even if
// it is the process's own group id.
//
// The environment variable TORCHTRT_TRUSTED_PATHS lists absolute paths, separated by ":". Everything at or below one of
// them is trusted without a check. Links are followed in the list and in the path.
//
// The way is checked from "/" down, one name at a time. So no untrusted user can change the contents of a directory
// that has been checked, and there is no race between the check and the use of the path. A sticky directory is the
// exception: a stranger may create there what was missing during the check. So the file at the resolved path must be
// opened with O_NOFOLLOW and given to check_trusted().
//
// docs/cache-file-contract.md has these rules for other programs. torchtrt_cache/trust.py has them in Python.
struct TrustedPath {
  std::string path;                  // absolute and without links
  std::optional<struct stat> status; // none if nothing is there
  bool is_listed;                    // in TORCHTRT_TRUSTED_PATHS
  std::vector<uid_t> users;          // who may own a file there
};

// Returns where `path` leads, or nullopt if a directory on the way is missing. If `path` is not trusted, throws
// torch_tensorrt::Error, which says why and what to do. Throws std::system_error if the check itself fails.
std::optional<TrustedPath> resolve_trusted(const std::string& path);

// Throws torch_tensorrt::Error if the open file with the status `opened` is not trusted.
void check_trusted(const TrustedPath& path, const struct stat& opened);

} // namespace torch_tensorrt::core::runtime
