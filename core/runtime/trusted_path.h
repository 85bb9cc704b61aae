#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>
#include <vector>

namespace torch_tensorrt::core::runtime {

// Whose kernels may be loaded, and where kernels may be saved. Kernels are code, so a path is trusted only if
// no one else could have put a file there than the process's user, root and members of the process's groups. All ids
// are effective ones. Root is the owner of "/", whose number differs in a user namespace.
//
// - Everything on the way (directories, symbolic links, the file) belongs to the user or root, or to a group of ours.
// - Directories without the sticky bit, and the file, are writable neither by everybody nor by a group that is not
// ours.
//
// A user namespace shows one number, the overflow id, for everybody without a number in it. That may be root and any
// stranger. If the owner of "/" has it, others who have it count as root only as owners of directories and symbolic
// links that are in no sticky directory. So a stranger's directory counts as root's there, but no stranger's file as
// anybody's. The overflow id of groups is no group of this process, even if it is its real one.
//
// The environment variable TORCHTRT_TRUSTED_PATHS lists absolute paths, separated by ":". What lies at or below one of
// them is trusted without a check; links are followed on both sides.
//
// The way is checked from "/" down, one name at a time. So nobody untrusted can change what a checked directory has,
// and there is no race between the check and the use of the path. A sticky directory is the exception: there a stranger
// may create what was missing at the check. So what is opened at the resolved path must be opened with O_NOFOLLOW and
// given to check_trusted().
//
// docs/cache-file-contract.md has these rules for other programs. torchtrt_cache/trust.py has them in Python.
struct TrustedPath {
  std::string path;                  // absolute and without links
  std::optional<struct stat> status; // none if nothing is there
  bool is_listed;                    // in TORCHTRT_TRUSTED_PATHS
  std::vector<uid_t> users;          // who may own a file there
};

// Returns where `path` leads, or nullopt if a directory on the way is missing. Throws torch_tensorrt::Error, which says
// why and what to do, if that is not trusted, and std::system_error if it can't be told.
std::optional<TrustedPath> resolve_trusted(const std::string& path);

// Throws torch_tensorrt::Error if the open file with the status `opened` is not trusted.
void check_trusted(const TrustedPath& path, const struct stat& opened);

} // namespace torch_tensorrt::core::runtime
