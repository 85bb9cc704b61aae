#include "core/runtime/RuntimeCacheHandle.h"

#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <iomanip>
#include <sstream>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include <ATen/Context.h>
#include <ATen/ops/_lazy_clone.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>
#include <NvInferRuntime.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/runtime/trusted_path.h"
#include "core/util/prelude.h"

namespace torch_tensorrt::core::runtime {

using nvinfer1::IRuntimeCache;
using View = RuntimeCacheFile::View;

// The waits for locks of one load or save. The destructor adds them to the statistics.
class RuntimeCacheHandle::Waits : public LockWaits {
 public:
  explicit Waits(RuntimeCacheHandle& handle, Clock::time_point end = Clock::time_point::max())
      : LockWaits{
            .timeout = handle.lock_timeout_,
            .deadline = std::min(end, CheckpointThread::exit_deadline().value_or(end))},
        handle_(handle) {}
  ~Waits() {
    const std::lock_guard lock(handle_.state_mutex_);
    handle_.statistics_.lock_wait += waited;
  }
  Waits(const Waits&) = delete;
  Waits& operator=(const Waits&) = delete;

 private:
  RuntimeCacheHandle& handle_;
};

namespace {

namespace fs = std::filesystem;

constexpr std::chrono::milliseconds kDiskMutexPoll{5};
constexpr int kReplacementsByOthers = 2;         // the first one may be due to damage
constexpr int64_t kLargeFile = int64_t{1} << 30; // bytes
constexpr int kChangesWithoutGrowth = 10;        // after these, only growth means new kernels to a checkpoint

bool are_checkpoints_on() {
  static std::atomic<bool> has_warned = false;
  const char* const text = std::getenv("TORCHTRT_RUNTIME_CACHE_CHECKPOINTS");
  const std::string_view value = text == nullptr ? "" : text;
  if (value != "" && value != "0" && value != "1" && !has_warned.exchange(true)) {
    LOG_WARNING("TORCHTRT_RUNTIME_CACHE_CHECKPOINTS is '" << value << "', expected 0 or 1; checkpoints are on");
  }
  return value != "0";
}

std::string absolute(const std::string& path) {
  if (path.empty()) {
    TORCHTRT_THROW_ERROR("The path of a runtime cache is empty");
  }
  const fs::path written(path);
  if (written.is_absolute()) {
    return path;
  }
  std::error_code error;
  const fs::path directory = fs::current_path(error);
  if (error) {
    TORCHTRT_THROW_ERROR("Can't make the path '" << path << "' of a runtime cache absolute: " << error.message());
  }
  return (directory / written).string();
}

at::Tensor allocate(int64_t size) {
  return at::empty({size}, at::TensorOptions(at::kByte).device(at::kCPU));
}

View view(const at::Tensor& bytes) {
  return {static_cast<const std::byte*>(bytes.const_data_ptr()), bytes.nbytes()};
}

size_t hash(View bytes) {
  return std::hash<std::string_view>()({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

// Returns the bytes in one piece, without a copy if they already are. Throws unless they are a tensor of bytes.
at::Tensor contiguous_bytes(const at::Tensor& bytes) {
  if (!bytes.defined()) {
    TORCHTRT_THROW_ERROR("The bytes of a runtime cache are an undefined tensor");
  }
  const bool is_plain = bytes.layout() == at::kStrided && bytes.is_cpu();
  if (!is_plain || bytes.scalar_type() != at::kByte || bytes.dim() != 1) {
    TORCHTRT_THROW_ERROR(
        "The bytes of a runtime cache must be a dense one-dimensional uint8 tensor on the CPU, got one of "
        << bytes.scalar_type() << " and shape " << bytes.sizes() << " on " << bytes.device() << ", " << bytes.layout());
  }
  return bytes.contiguous();
}

at::Tensor copy(const at::Tensor& bytes) {
  const at::Tensor contiguous = contiguous_bytes(bytes);
  const at::Tensor copied = allocate(contiguous.numel());
  if (!view(contiguous).empty()) {
    std::memcpy(copied.mutable_data_ptr(), contiguous.const_data_ptr(), contiguous.nbytes());
  }
  return copied;
}

// Returns a tensor that takes over the memory of `contents`. Unlike one of at::from_blob, it can be lazily cloned.
at::Tensor tensor_of(RuntimeCacheFile::Contents contents) {
  std::byte* const bytes = contents.bytes.release();
  c10::DataPtr memory(bytes, bytes, [](void* p) { delete[] static_cast<std::byte*>(p); }, at::kCPU);
  const uint64_t size = contents.generation.size;
  c10::Storage storage(c10::Storage::use_byte_size_t(), size, std::move(memory), c10::GetAllocator(at::kCPU));
  // Not Tensor::set_(): an operator initializes itself in its first call. If another thread were in that call during a
  // fork, the child's call would wait forever.
  auto tensor = at::detail::make_tensor<at::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), caffe2::TypeMeta::Make<uint8_t>());
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous({static_cast<int64_t>(size)});
  return tensor;
}

// Returns the kind of the current CUDA device.
RuntimeCacheKind current_kind() {
  int ordinal = 0;
  try {
    if (at::hasCUDA()) {
      ordinal = c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).getDevice().index();
    }
  } catch (const c10::Error& error) { // such as in a child of a process that used CUDA before it forked
    TORCHTRT_THROW_ERROR(error.what_without_backtrace());
  }
  return RuntimeCacheKind::of(ordinal);
}

std::string unknown_kind(const char* operation, const std::string& path, const std::string& reason) {
  return "Can't " + std::string(operation) + " the runtime cache '" + path +
      "': it is a directory with a file for each kind of machine, and the kind of this one is unknown: " + reason;
}

bool is_empty(const std::string& path) {
  if (!is_directory(path)) {
    return RuntimeCacheFile::is_empty(path);
  }
  try {
    const std::vector<std::string> files = files_to_load(path, current_kind());
    return std::ranges::all_of(files, RuntimeCacheFile::is_empty);
  } catch (const Error&) {
    return false; // there may be a file
  }
}

// Creates the last directory of the path if it is missing and the others are trusted.
void make_directory(const std::string& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    return;
  }
  try {
    resolve_trusted(path.substr(0, path.find_last_not_of('/') + 1));
  } catch (const std::exception& error) {
    TORCHTRT_THROW_ERROR("Can't save the runtime cache '" << path << "': " << message_of(error));
  }
  if (::mkdir(path.c_str(), 0775) != 0 && errno != EEXIST) {
    TORCHTRT_THROW_ERROR(
        "Can't save the runtime cache '" << path << "': create '" << path
                                         << "': " << std::generic_category().message(errno));
  }
}

void accept(const std::vector<std::string>& offers) {
  for (const std::string& offer : offers) {
    RuntimeCacheFile::accept_offer(offer);
  }
}

} // namespace

// The handles of this process, and its path caches. Never destroyed, because engines in static storage may outlive any
// other static.
class Handles {
 public:
  using Handle = RuntimeCacheHandle;

  static Handles& get() {
    static Handles& handles = *new Handles;
    return handles;
  }

  void add(Handle* handle) {
    const std::lock_guard lock(mutex_);
    handles_.insert(handle);
  }

  void remove(Handle* handle) {
    const std::lock_guard lock(mutex_);
    handles_.erase(handle);
  }

  // Returns the path cache, and whether it is new.
  std::pair<c10::intrusive_ptr<Handle>, bool> find_or_make(const std::string& path) {
    const Key key = key_of(path);
    const std::lock_guard lock(mutex_);
    std::erase_if(path_caches_, [](const auto& entry) { return entry.second.expired(); });
    if (const auto found = path_caches_.find(key); found != path_caches_.end()) {
      if (auto cache = found->second.lock()) {
        return {std::move(cache), false};
      }
    }
    auto cache = c10::make_intrusive<Handle>(path);
    path_caches_.insert_or_assign(key, c10::weak_intrusive_ptr<Handle>(cache));
    return {std::move(cache), true};
  }

  bool has_path_cache(const Handle* cache) {
    const std::lock_guard lock(mutex_);
    return std::any_of(path_caches_.begin(), path_caches_.end(), [cache](const auto& entry) {
      return entry.second._unsafe_get_target() == cache;
    });
  }

 private:
  // The real path of the directory, and the last component, which is empty if the path means the directory itself.
  using Key = std::pair<std::string, std::string>;

  // A fork waits until no handle is being changed. A child starts without the contents of live handles, which belong to
  // engines of its parent.
  Handles() {
    CheckpointThread::get(); // registers its fork handlers first, because its mutex is taken under those of handles
    ::pthread_atfork(
        [] {
          get().mutex_.lock();
          for (Handle* handle : get().handles_) {
            handle->state_mutex_.lock();
          }
        },
        [] {
          for (Handle* handle : get().handles_) {
            handle->state_mutex_.unlock();
          }
          get().mutex_.unlock();
        },
        [] {
          std::construct_at(&get().mutex_); // a thread of the parent owns it
          for (Handle* handle : get().handles_) {
            handle->start_over_in_child();
            handle->state_mutex_.unlock();
          }
          get().path_caches_.clear();
        });
  }

  static Key key_of(const std::string& path) {
    const fs::path written(is_directory(path) ? fs::path(path) / "" : fs::path(path));
    std::error_code error;
    const fs::path directory = fs::weakly_canonical(written.parent_path(), error);
    return {error ? written.parent_path().string() : directory.string(), written.filename().string()};
  }

  std::recursive_mutex mutex_; // guards the rest; recursive, because changes of path_caches_ make and destroy handles
  std::set<Handle*> handles_;
  std::map<Key, c10::weak_intrusive_ptr<Handle>> path_caches_;
};

namespace {
// Initialized at load time. If another thread were initializing it during a fork, the child would wait for it forever.
[[maybe_unused]] const Handles& handles = Handles::get();
} // namespace

RuntimeCacheHandle::RuntimeCacheHandle(std::string path)
    : path_(std::move(path)), nothing_(allocate(0)), contents_(nothing_) {
  Handles::get().add(this);
}

RuntimeCacheHandle::~RuntimeCacheHandle() {
  Handles::get().remove(this);
}

c10::intrusive_ptr<RuntimeCacheHandle> RuntimeCacheHandle::for_path(const std::string& path) {
  return Handles::get().find_or_make(absolute(path)).first;
}

c10::intrusive_ptr<RuntimeCacheHandle> RuntimeCacheHandle::from_state(const State& state) {
  const auto& [path, bytes, files, autosave, checkpoints, is_path_cache] = state;
  const at::Tensor copied = copy(bytes);
  auto [handle, is_new] = is_path_cache ? Handles::get().find_or_make(path)
                                        : std::pair(c10::make_intrusive<RuntimeCacheHandle>(path), true);
  if (is_new) {
    handle->autosave_ = autosave;
    handle->checkpoints_ = checkpoints;
  }
  if (is_new && (!is_path_cache || is_empty(path))) {
    // Other threads may have obtained the path cache meanwhile.
    const std::lock_guard disk_lock(handle->disk_mutex_);
    const std::lock_guard lock(handle->state_mutex_);
    const auto* pending = std::get_if<at::Tensor>(&handle->contents_);
    if (pending != nullptr && pending->numel() == 0) {
      handle->take(copied, files);
    }
  }
  return handle;
}

RuntimeCacheHandle::State RuntimeCacheHandle::state() const {
  const bool is_path_cache = Handles::get().has_path_cache(this);
  const Place place = place_of(path_);
  const std::lock_guard lock(state_mutex_);
  // The files of which a pending copy must not overwrite newer versions, because this cache can still merge with them.
  std::vector<std::string> files;
  for (const auto& [path, store] : stores_) {
    if (store.digest || store.contained) {
      files.push_back(path);
    }
  }
  if (std::holds_alternative<Lives>(contents_)) {
    for (const auto& [file, lives] : lives_by_file(place)) {
      if (!file.empty()) {
        files.push_back(file);
      }
    }
  }
  return {path_, serialize_locked(), std::move(files), autosave_, checkpoints_, is_path_cache};
}

void RuntimeCacheHandle::release_resources() {
  CheckpointThread::get().remove(this);
  const std::lock_guard lock(state_mutex_);
  contents_ = nothing_;
}

// Called in a child of fork(). Requires state_mutex_. Allocates only what is meant to leak, because any lock may be
// held forever by a thread that does not exist here.
void RuntimeCacheHandle::start_over_in_child() noexcept {
  if (auto* lives = std::get_if<Lives>(&contents_)) {
    new Lives(std::move(*lives));
    contents_ = nothing_;
    stores_.clear();
  }
  autosave_ = false;
  engines_ = 0; // the parent's engines never detach here
  statistics_ = {};
  size_at_load_ = 0;
  // The threads that used these do not exist here.
  std::construct_at(&disk_mutex_);
  std::construct_at(&reported_causes_);
  has_warned_of_unknown_kind_ = false;
}

void RuntimeCacheHandle::set_autosave(bool autosave) {
  autosave_ = autosave;
  mark_if_live();
}

void RuntimeCacheHandle::set_checkpoints(bool checkpoints) {
  checkpoints_ = checkpoints;
  mark_if_live();
}

// Schedules a checkpoint for kernels that were compiled before the cache had checkpoints.
void RuntimeCacheHandle::mark_if_live() {
  if (is_checkpointed()) {
    CheckpointThread::get().begin(this, has_lazy_engines_);
    CheckpointThread::get().end(this);
  }
}

bool RuntimeCacheHandle::is_checkpointed() const {
  return autosave_ && checkpoints_ && !path_.empty() && are_checkpoints_on();
}

RuntimeCacheHandle::Compiling::Compiling(c10::intrusive_ptr<RuntimeCacheHandle> cache, bool specializes_lazily)
    : cache_(std::move(cache)) {
  if (cache_ != nullptr && specializes_lazily) {
    cache_->has_lazy_engines_ = true;
  }
  if (cache_ != nullptr && !cache_->is_checkpointed()) {
    cache_.reset();
  }
  if (cache_ != nullptr) {
    CheckpointThread::get().begin(cache_.get(), specializes_lazily);
  }
}

RuntimeCacheHandle::Compiling::~Compiling() {
  if (cache_ != nullptr) {
    CheckpointThread::get().end(cache_.get());
  }
}

void RuntimeCacheHandle::attach() noexcept {
  engines_.fetch_add(1);
}

bool RuntimeCacheHandle::detach() noexcept {
  return engines_.fetch_sub(1) == 1;
}

at::Tensor RuntimeCacheHandle::serialize() const {
  const std::lock_guard lock(state_mutex_);
  return serialize_locked();
}

void RuntimeCacheHandle::deserialize(const at::Tensor& bytes) {
  const at::Tensor copied = copy(bytes);
  const auto disk_lock = lock_disk("change", path_, Waits(*this).deadline);
  at::Tensor old; // freed without the mutex
  const std::lock_guard lock(state_mutex_);
  for (auto& [file, store] : stores_) {
    store.largest = 0; // an empty tensor clears the cache
  }
  const auto* lives = std::get_if<Lives>(&contents_);
  if (lives == nullptr) {
    old = take(copied, {});
    return;
  }
  // The contents may no longer have the files' kernels.
  forget_stores();
  for (const auto& live : *lives) {
    if (copied.numel() > 0) {
      feed(*live, view(copied), "");
    } else if (!live->reset()) {
      TORCHTRT_THROW_ERROR("TensorRT-RTX could not clear the runtime cache '" << path_ << "'");
    }
  }
}

at::Tensor RuntimeCacheHandle::merged(const at::Tensor& theirs, const at::Tensor& ours, const std::string& file_name)
    const {
  const at::Tensor first = contiguous_bytes(theirs);
  const at::Tensor second = contiguous_bytes(ours);
  const auto live = live_of_kind(file_name);
  if (live == nullptr) {
    TORCHTRT_THROW_ERROR(
        "The runtime cache '" << path_ << "' is not in use on a device of the kind '" << file_name << "'");
  }
  const auto merged = live->merge(view(first), view(second));
  if (!merged.bytes.defined()) {
    TORCHTRT_THROW_ERROR(
        "Can't merge runtime caches of " << first.numel() << " and " << second.numel() << " bytes of the kind '"
                                         << file_name << "': " << merged.reason_against);
  }
  return merged.bytes;
}

bool RuntimeCacheHandle::has_cache() const {
  const std::lock_guard lock(state_mutex_);
  const auto* pending = std::get_if<at::Tensor>(&contents_);
  return pending == nullptr || pending->numel() > 0;
}

int64_t RuntimeCacheHandle::load(const std::string& path) {
  const std::string& from = path_or_default(path);
  const auto disk_lock = lock_disk("load", from, Waits(*this).deadline);
  return load_locked(place_of(from));
}

// Returns what a path means. A path that was a directory at an earlier use stays one. Otherwise, after somebody removed
// the directory, a save would create a file there that all kinds share.
RuntimeCacheHandle::Place RuntimeCacheHandle::place_of(const std::string& path) const {
  const bool is_one = is_directory(path);
  if (is_one && path == path_) {
    was_directory_ = true;
  }
  return {.path = path, .is_directory = is_one || (path == path_ && was_directory_)};
}

// Returns the live caches by the file that each has at `place`. The file is "" for a cache that has none, because the
// path is empty or the kind is unknown. Requires state_mutex_ and a live handle.
RuntimeCacheHandle::LivesByFile RuntimeCacheHandle::lives_by_file(const Place& place) const {
  const auto& lives = std::get<Lives>(contents_);
  if (!place.is_directory) {
    return {{place.path, lives}};
  }
  LivesByFile by_file;
  for (const auto& live : lives) {
    by_file[live->kind() ? file_in(place.path, *live->kind()) : ""].push_back(live);
  }
  return by_file;
}

// Requires disk_mutex_.
int64_t RuntimeCacheHandle::load_locked(const Place& place) {
  LivesByFile by_file;
  {
    const std::lock_guard lock(state_mutex_);
    if (std::holds_alternative<Lives>(contents_)) {
      by_file = lives_by_file(place);
    }
  }
  if (by_file.empty()) {
    const auto loaded = read(place, place.is_directory ? current_kind_or_warn(place.path) : std::nullopt);
    return loaded ? take_loaded(*loaded) : 0;
  }
  std::vector<std::pair<Lives, Loaded>> read_files; // all of them first, so that an error leaves the handle unchanged
  for (const auto& [file, lives] : by_file) {
    if (auto loaded = read(place, lives.front()->kind())) {
      read_files.emplace_back(lives, std::move(*loaded));
    }
  }
  const std::lock_guard lock(state_mutex_);
  std::erase_if(read_files, [this](const auto& entry) { return !feed_all(entry.first, entry.second); });
  if (!read_files.empty()) {
    forget_stores(); // the kernels of other files may have been replaced
  }
  int64_t size = 0;
  for (const auto& [lives, loaded] : read_files) {
    note_loaded(loaded);
    size += loaded.bytes.numel();
  }
  size_at_load_ = std::max(size_at_load_, size);
  return size;
}

// Reads the file that `place` has for `kind`, which only a directory needs. Requires disk_mutex_.
std::optional<RuntimeCacheHandle::Loaded> RuntimeCacheHandle::read(
    const Place& place,
    const std::optional<RuntimeCacheKind>& kind) {
  std::vector<std::string> files{place.path};
  if (place.is_directory) {
    files = kind ? files_to_load(place.path, *kind) : std::vector<std::string>();
  }
  RECORD_FUNCTION("RuntimeCache:load", c10::ArrayRef<const c10::IValue>{});
  Waits waits(*this);
  for (const std::string& file : files) {
    if (auto contents = RuntimeCacheFile(file, waits).read()) {
      const FileGeneration generation = contents->generation;
      return Loaded{
          .file = file,
          .own = place.is_directory ? file_in(place.path, *kind) : file,
          .bytes = tensor_of(std::move(*contents)),
          .generation = generation};
    }
  }
  return std::nullopt;
}

// Gives a pending handle the bytes of a file, and returns their number.
int64_t RuntimeCacheHandle::take_loaded(const Loaded& loaded) {
  at::Tensor old; // freed without the mutex
  const std::lock_guard lock(state_mutex_);
  old = take(loaded.bytes, {loaded.file, loaded.own}); // whatever others save to `own` meanwhile is newer
  note_loaded(loaded);
  return loaded.bytes.numel();
}

// Requires state_mutex_.
void RuntimeCacheHandle::note_loaded(const Loaded& loaded) {
  warn_of_size(loaded.file, loaded.bytes.numel());
  stores_[loaded.file].contained = loaded.generation;
  stores_[loaded.file].size = loaded.generation.size;
  statistics_.bytes_loaded += loaded.bytes.numel();
  statistics_.loaded_from = loaded.file;
}

// Requires disk_mutex_.
std::optional<RuntimeCacheKind> RuntimeCacheHandle::current_kind_or_warn(const std::string& path) {
  try {
    return current_kind();
  } catch (const Error& error) {
    warn_of_unknown_kind(path, error.msg());
    return std::nullopt;
  }
}

// Logs the warning only once. Requires disk_mutex_.
void RuntimeCacheHandle::warn_of_unknown_kind(const std::string& path, const std::string& reason) {
  if (!std::exchange(has_warned_of_unknown_kind_, true)) {
    LOG_WARNING(unknown_kind("load", path, reason) << ". Kernels will be compiled anew");
  }
}

int64_t RuntimeCacheHandle::save(const std::string& path) {
  return save_until(path, CheckpointThread::Clock::time_point::max());
}

int64_t RuntimeCacheHandle::save_until(const std::string& path, CheckpointThread::Clock::time_point deadline) {
  const std::string& to = path_or_default(path);
  Waits waits(*this, deadline);
  const auto disk_lock = lock_disk("save", to, waits.deadline);
  return save_locked(place_of(to), waits, false).value_or(0);
}

// Returns the lock of disk_mutex_. Throws if another thread keeps it until the deadline.
std::unique_lock<std::mutex> RuntimeCacheHandle::lock_disk(
    const char* operation,
    const std::string& path,
    CheckpointThread::Clock::time_point deadline) {
  const auto start = Waits::Clock::now();
  std::unique_lock disk_lock(disk_mutex_, std::defer_lock);
  if (deadline == Waits::Clock::time_point::max()) {
    disk_lock.lock();
  }
  while (!disk_lock.owns_lock() && !disk_lock.try_lock()) {
    const auto now = Waits::Clock::now();
    if (now >= deadline) {
      const auto milliseconds = std::chrono::round<std::chrono::milliseconds>(now - start).count();
      TORCHTRT_THROW_ERROR(
          "Can't " << operation << " the runtime cache '" << path << "': another load or save of it went on for "
                   << milliseconds << " ms");
    }
    std::this_thread::sleep_for(kDiskMutexPoll);
  }
  return disk_lock;
}

int64_t RuntimeCacheHandle::save_within(std::chrono::nanoseconds timeout) {
  struct Result {
    int64_t written = 0;
    std::exception_ptr error = nullptr;
  };
  path_or_default("");
  const auto result = std::make_shared<Result>();
  const auto now = CheckpointThread::Clock::now();
  const auto self = c10::intrusive_ptr<RuntimeCacheHandle>::reclaim_copy(this);
  const auto save_to_path = [result, self, end_of_waits = now + timeout / 2] {
    try {
      result->written = self->save_until("", end_of_waits);
    } catch (...) {
      result->error = std::current_exception();
    }
  };
  if (!CheckpointThread::get().run(save_to_path, now + timeout)) {
    const auto milliseconds = std::chrono::round<std::chrono::milliseconds>(timeout).count();
    TORCHTRT_THROW_ERROR("Can't save the runtime cache '" << path_ << "': not done within " << milliseconds << " ms");
  }
  if (result->error != nullptr) {
    std::rethrow_exception(result->error);
  }
  return result->written;
}

CheckpointThread::Result RuntimeCacheHandle::checkpoint(const std::stop_token& stop) noexcept {
  using Found = CheckpointSchedule::Found;
  Waits waits(*this);
  waits.stop = stop;
  const std::unique_lock disk_lock(disk_mutex_, std::try_to_lock);
  if (!is_checkpointed()) {
    return {Found::kNothing, {}};
  }
  if (!disk_lock.owns_lock()) {
    return {Found::kLater, {}};
  }
  try {
    const bool is_new = save_locked(place_of(path_), waits, true).has_value();
    reported_causes_.clear();
    return {is_new ? Found::kNew : Found::kNothing, waits.waited};
  } catch (const std::exception& error) {
    if (stop.stop_requested() || CheckpointThread::exit_deadline()) {
      return {Found::kLater, waits.waited};
    }
    // The cause is the end of the message, because names of temporary files differ each time.
    const std::string message = message_of(error);
    const size_t colon = message.rfind(": ");
    const bool is_news = reported_causes_.insert(message.substr(colon == std::string::npos ? 0 : colon)).second;
    TORCHTRT_LOG(is_news ? util::logging::LogLevel::kWARNING : util::logging::LogLevel::kINFO, message);
    return {Found::kFailed, waits.waited};
  }
}

bool RuntimeCacheHandle::is_saved_at_exit() const noexcept {
  return autosave_ && !path_.empty();
}

void RuntimeCacheHandle::save_at_exit() noexcept {
  try {
    const auto now = CheckpointThread::Clock::now();
    save_until("", now + (CheckpointThread::begin_exit() - now) / 2);
  } catch (const std::exception& error) {
    LOG_WARNING(message_of(error));
    autosave_ = false; // an engine that ends later would only log the same failure
  }
  if (engines_ > 0) { // otherwise they were logged when the last one ended
    log_statistics();
  }
}

RuntimeCacheHandle::Statistics RuntimeCacheHandle::statistics() const {
  const Place place = place_of(path_);
  const std::lock_guard lock(state_mutex_);
  Statistics statistics = statistics_;
  if (const auto* pending = std::get_if<at::Tensor>(&contents_)) {
    statistics.size = pending->numel();
    return statistics;
  }
  for (const auto& [file, lives] : lives_by_file(place)) {
    const at::Tensor bytes = merged_bytes(lives);
    statistics.size += lives.front()->is_without_kernels(view(bytes)) ? 0 : bytes.numel();
  }
  statistics.size_added = std::max<int64_t>(statistics.size - size_at_load_, 0);
  return statistics;
}

void RuntimeCacheHandle::log_statistics() const noexcept try {
  if (!util::logging::is_reported(util::logging::LogLevel::kINFO)) {
    return;
  }
  const Statistics s = statistics();
  LOG_INFO(
      "The runtime cache '" << path_ << "': " << s.bytes_loaded << " bytes loaded, " << s.size << " bytes now, "
                            << s.size_added << " of them new; " << s.saves << " saves and " << s.checkpoints
                            << " checkpoints wrote " << s.bytes_written << " bytes; " << s.merges << " merges, "
                            << s.conflicts << " conflicts, " << s.rejections << " rejections; " << std::fixed
                            << std::setprecision(3) << std::chrono::duration<double>(s.lock_wait).count()
                            << " s of waiting for locks");
} catch (const std::exception& error) {
  LOG_INFO("The runtime cache '" << path_ << "' has no statistics: " << message_of(error));
}

// Returns the number of bytes written, or nullopt if there was nothing to write. Requires disk_mutex_.
std::optional<int64_t> RuntimeCacheHandle::save_locked(const Place& place, LockWaits& waits, bool is_checkpoint) {
  RECORD_FUNCTION("RuntimeCache:save", c10::ArrayRef<const c10::IValue>{});
  LivesByFile by_file;
  bool is_live = false;
  {
    const std::lock_guard lock(state_mutex_);
    is_live = std::holds_alternative<Lives>(contents_);
    if (is_live) {
      by_file = lives_by_file(place);
    }
  }
  if (!is_live) {
    by_file[file_of_pending(place)];
  }
  std::optional<int64_t> written;
  std::exception_ptr failure;
  for (const auto& [file, lives] : by_file) {
    try {
      if (file.empty()) {
        LOG_INFO("Kernels of another kind of machine, or of an unknown one, are not saved to '" << place.path << "'");
      } else if (const auto more = save_file(place, file, lives, waits, is_checkpoint)) {
        written = written.value_or(0) + *more;
      }
    } catch (const std::exception& error) {
      if (failure != nullptr) { // the first one is thrown after the other saves
        LOG_WARNING(message_of(error));
      } else {
        failure = std::current_exception();
      }
    }
  }
  if (failure != nullptr) {
    std::rethrow_exception(failure);
  }
  return written;
}

// Returns the file that `place` has for a pending handle, or "" if the bytes are those of other kinds there.
std::string RuntimeCacheHandle::file_of_pending(const Place& place) const {
  if (!place.is_directory || !has_cache()) {
    return place.path;
  }
  std::string file;
  try {
    file = file_in(place.path, current_kind());
  } catch (const Error& error) {
    TORCHTRT_THROW_ERROR(unknown_kind("save", place.path, error.msg()));
  }
  return has_bytes_of_other_kinds(file) ? "" : file;
}

// Returns true if the bytes of a pending handle are from other files beside `file`, and not from `file`.
bool RuntimeCacheHandle::has_bytes_of_other_kinds(const std::string& file) const {
  const std::lock_guard lock(state_mutex_);
  bool is_of_others = false;
  for (const auto& [known, store] : stores_) {
    const bool is_known = store.contained || store.digest;
    if (is_known && known == file) {
      return false;
    }
    is_of_others |= is_known && fs::path(known).parent_path() == fs::path(file).parent_path();
  }
  return is_of_others;
}

// Like save_locked(), for one file and the live caches that have it at `place`. A pending handle has no live caches.
std::optional<int64_t> RuntimeCacheHandle::save_file(
    const Place& place,
    const std::string& file,
    const Lives& lives,
    LockWaits& waits,
    bool is_checkpoint) {
  LiveRuntimeCache* const live = lives.empty() ? nullptr : lives.front().get();
  at::Tensor ours;
  Store store;
  {
    const std::lock_guard lock(state_mutex_);
    store = stores_[file];
    if (is_checkpoint && store.is_only_in_place) {
      return std::nullopt;
    }
    ours = live == nullptr ? bytes_locked() : merged_bytes(lives);
  }
  const size_t digest = hash(view(ours));
  std::error_code error;
  const auto file_size = fs::file_size(file, error);
  const bool is_file_empty = error || file_size == 0;
  // Merges only make a file grow. A file that is smaller than before was removed and created again without our kernels.
  const bool is_reset = is_file_empty || (live != nullptr && file_size < store.size);
  // Returns before the lock is taken, because that would fail in a read-only directory.
  if (digest == store.digest && !is_reset) {
    LOG_INFO("There are no new kernels for the runtime cache '" << file << "'");
    return std::nullopt;
  }
  // A write would create a file without kernels, or overwrite one that has kernels.
  if (ours.numel() == 0 || (live != nullptr && live->is_without_kernels(view(ours)))) {
    LOG_INFO("There are no kernels for the runtime cache '" << file << "'");
    return std::nullopt;
  }
  const bool has_grown = ours.nbytes() > store.largest || is_reset;
  if (is_checkpoint && !has_grown && store.changes_without_growth >= kChangesWithoutGrowth) {
    return std::nullopt;
  }
  if (place.is_directory) {
    make_directory(place.path);
  }
  std::optional<int64_t> written;
  try {
    written = write(RuntimeCacheFile(file, waits), file, live, ours, is_checkpoint);
  } catch (const OnlyInPlaceError&) {
    const std::lock_guard lock(state_mutex_);
    stores_[file].is_only_in_place = true;
    throw;
  }
  if (!written) {
    return std::nullopt;
  }
  const std::lock_guard lock(state_mutex_);
  stores_[file].digest = digest;
  if (is_checkpoint) {
    stores_[file].changes_without_growth = has_grown ? 0 : store.changes_without_growth + 1;
    stores_[file].largest = std::max(store.largest, ours.nbytes());
  }
  if (*written > 0) {
    ++(is_checkpoint ? statistics_.checkpoints : statistics_.saves);
    statistics_.bytes_written += *written;
    statistics_.last_save = std::chrono::system_clock::now();
  }
  return written;
}

// Writes `ours`. If `live` is not null, its scratch cache merges them with the bytes in the file. Returns nullopt if
// the file is left to another kind of machine. Requires disk_mutex_.
std::optional<int64_t> RuntimeCacheHandle::write(
    const RuntimeCacheFile& file,
    const std::string& path,
    LiveRuntimeCache* live,
    const at::Tensor& ours,
    bool is_checkpoint) {
  std::optional<FileGeneration> expected;
  {
    const std::lock_guard lock(state_mutex_);
    expected = stores_[path].contained;
  }
  std::optional<RuntimeCacheFile::Turn> turn;
  LiveRuntimeCache::Merged merged;
  size_t others = 0; // bytes that others saved
  std::optional<RuntimeCacheFile::Replaced> replaced;
  for (int merges = 0; !replaced; ++merges) {
    if (merges > kMaxMerges) {
      TORCHTRT_THROW_ERROR(
          "Can't save the runtime cache '" << path << "': others saved to it " << kMaxMerges
                                           << " times while this process merged. The file is intact");
    }
    if (live != nullptr && !turn && (merges > 0 || file.is_turn_taken())) {
      turn = file.wait_for_turn(view(ours));
      if (turn->is_saved) {
        LOG_INFO("Another process saved the kernels of this one to the runtime cache '" << path << "'");
        return 0;
      }
    }
    if (merges > 0) {
      merged = {};
      const auto disk = file.read();
      expected = disk ? std::optional(disk->generation) : std::nullopt;
      others = disk ? disk->generation.size : 0;
      if (disk && live != nullptr) {
        LOG_INFO("Merging with the " << others << " bytes that others saved to the runtime cache '" << path << "'");
        merged = live->merge(disk->view(), view(ours), turn->offers);
        count(&Statistics::merges);
        if (merged.is_disk_rejected && !may_replace_rejected(path, others)) {
          return std::nullopt;
        }
        if (merged.adds_nothing) {
          accept(merged.offers);
          const std::lock_guard lock(state_mutex_);
          stores_[path].size = others;
          LOG_INFO("The runtime cache '" << path << "' has all kernels already");
          return 0;
        }
      }
      if (disk && !merged.bytes.defined()) {
        // Removes the record of transfers. With it, a push would believe that the file still has its old kernels.
        ::unlink((path + ".remote").c_str());
      }
    }
    replaced = file.replace(view(merged.bytes.defined() ? merged.bytes : ours), expected, !is_checkpoint);
    if (!replaced) {
      count(&Statistics::conflicts);
    }
  }
  accept(merged.offers);
  const std::lock_guard lock(state_mutex_);
  Store& store = stores_[path];
  store.has_been_saved = true;
  store.size = replaced->generation.size;
  warn_of_size(path, static_cast<int64_t>(replaced->generation.size));
  // The kernels of others are on disk and not in our contents.
  store.contained = merged.bytes.defined() ? std::nullopt : std::optional(replaced->generation);
  if (!replaced->is_written) {
    return 0;
  }
  store.is_only_in_place = !replaced->in_place.empty();
  const auto written = static_cast<int64_t>(replaced->generation.size);
  if (!replaced->in_place.empty() && !std::exchange(store.has_warned_of_writing_in_place, true)) {
    LOG_WARNING(
        "The runtime cache '" << path << "' is written in place, because it can't be replaced: " << replaced->in_place
                              << ". A crash during a write can tear it");
  }
  if (others > 0 && live == nullptr) {
    LOG_WARNING(
        "Saving " << written << " bytes to the runtime cache '" << path << "' replaced " << others
                  << " bytes that had not been read from it");
  } else if (others > 0 && merged.is_disk_rejected) {
    report_rejection(others, path, "They were replaced by the kernels that this process compiled");
  } else if (others > 0 && !merged.bytes.defined()) {
    LOG_WARNING(
        "The " << others << " bytes that others saved to the runtime cache '" << path
               << "' could not be merged and were replaced by " << written
               << " bytes of this process: " << merged.reason_against);
  }
  return written;
}

// Returns true if the save may overwrite bytes that TensorRT-RTX rejects. The first time it may not, logs a warning.
bool RuntimeCacheHandle::may_replace_rejected(const std::string& file, size_t size) {
  const std::lock_guard lock(state_mutex_);
  Store& store = stores_[file];
  const bool is_replaced = std::exchange(store.has_been_saved, false);
  store.replacements_by_others += is_replaced ? 1 : 0;
  const bool may_replace = store.replacements_by_others < kReplacementsByOthers;
  if (!may_replace) {
    const bool is_news = is_replaced && store.replacements_by_others == kReplacementsByOthers;
    count_rejection(
        "The runtime cache '" + file + "' was replaced again by " + std::to_string(size) +
            " bytes that TensorRT-RTX rejects, so this process no longer overwrites it: two kinds of machine"
            " (GPU, driver or TensorRT-RTX version) share the path. To serve both, use a directory as the path",
        is_news);
  }
  return may_replace;
}

// Logs a warning, once per file, if the file is large. Requires state_mutex_.
void RuntimeCacheHandle::warn_of_size(const std::string& file, int64_t size) {
  if (size > kLargeFile && !std::exchange(stores_[file].has_warned_of_size, true)) {
    LOG_WARNING(
        "The runtime cache '" << file << "' has grown to " << size
                              << " bytes. TensorRT-RTX never removes kernels; remove the file to start anew");
  }
}

std::shared_ptr<IRuntimeCache> RuntimeCacheHandle::ensure_materialized(
    nvinfer1::IRuntimeConfig* config,
    c10::Device device,
    const std::optional<RuntimeCacheKind>& kind) {
  TORCHTRT_CHECK(config != nullptr, "A runtime cache needs an IRuntimeConfig that creates it");
  if (auto cache = live_cache(device)) {
    return cache;
  }
  const auto disk_lock = lock_disk("load", path_, Waits(*this).deadline);
  if (auto cache = live_cache(device)) {
    return cache;
  }
  const auto live = std::make_shared<LiveRuntimeCache>(*config, device, kind, path_);
  const Place place = place_of(path_);
  if (place.is_directory && !kind) {
    warn_of_unknown_kind(path_, "CUDA does not identify its GPU or driver");
  }
  std::optional<Lives> others;
  {
    const std::lock_guard lock(state_mutex_);
    if (const auto* lives = std::get_if<Lives>(&contents_)) {
      others = *lives;
    }
  }
  if (others) {
    std::erase_if(*others, [&](const auto& other) { return place.is_directory && other->kind() != kind; });
    add_live(place, live, *others);
  } else {
    go_live(place, live);
  }
  return live->cache();
}

// Makes a pending handle live. Requires disk_mutex_.
void RuntimeCacheHandle::go_live(const Place& place, const std::shared_ptr<LiveRuntimeCache>& live) {
  if (place.is_directory && live->kind() && has_bytes_of_other_kinds(file_in(place.path, *live->kind()))) {
    at::Tensor old; // freed without the mutex
    const std::lock_guard lock(state_mutex_);
    old = take(nothing_, {});
  }
  if (!has_cache()) {
    if (const auto loaded = read_or_warn(place, live->kind())) {
      take_loaded(*loaded);
    }
  }
  at::Tensor bytes; // freed without the mutex
  const std::lock_guard lock(state_mutex_);
  bytes = bytes_locked();
  const bool is_accepted = start_with(*live, bytes);
  contents_ = Lives{live};
  for (auto& [path, store] : stores_) {
    // A pending copy must not overwrite its original's files. Now it can merge with them.
    if (!is_accepted || !store.contained) {
      store.contained.reset();
      store.digest.reset();
    }
  }
  const auto self =
      c10::weak_intrusive_ptr<RuntimeCacheHandle>(c10::intrusive_ptr<RuntimeCacheHandle>::reclaim_copy(this));
  CheckpointThread::get().add(
      this,
      {.checkpoint =
           [self](const std::stop_token& stop) {
             const auto cache = self.lock();
             return cache == nullptr ? CheckpointThread::Result{} : cache->checkpoint(stop);
           },
       .is_saved_at_exit =
           [self] {
             const auto cache = self.lock();
             return cache != nullptr && cache->is_saved_at_exit();
           },
       .save_at_exit =
           [self] {
             if (const auto cache = self.lock()) {
               cache->save_at_exit();
             }
           }});
}

// Adds a device to a live handle. `siblings` are the live caches with the same file. Requires disk_mutex_.
void RuntimeCacheHandle::add_live(
    const Place& place,
    const std::shared_ptr<LiveRuntimeCache>& live,
    const Lives& siblings) {
  const auto loaded = siblings.empty() ? read_or_warn(place, live->kind()) : std::nullopt;
  const std::lock_guard lock(state_mutex_);
  std::get<Lives>(contents_).push_back(live);
  if (!siblings.empty()) {
    start_with(*live, merged_bytes(siblings));
  } else if (loaded && feed_all({live}, *loaded)) {
    note_loaded(*loaded);
    size_at_load_ += loaded->bytes.numel();
  }
}

// Gives the bytes of the handle to a new live cache. Returns false if it rejects them. Requires state_mutex_.
bool RuntimeCacheHandle::start_with(LiveRuntimeCache& live, const at::Tensor& bytes) {
  if (bytes.numel() > 0 && !feed(live, view(bytes), source_locked())) {
    return false;
  }
  size_at_load_ = std::max(size_at_load_, bytes.numel());
  return true;
}

// Like read(), but returns nullopt if the path is empty. If it fails, logs a warning and returns nullopt. Requires
// disk_mutex_.
std::optional<RuntimeCacheHandle::Loaded> RuntimeCacheHandle::read_or_warn(
    const Place& place,
    const std::optional<RuntimeCacheKind>& kind) {
  try {
    return place.path.empty() ? std::nullopt : read(place, kind);
  } catch (const Error& error) {
    LOG_WARNING(error.msg() << ". Kernels will be compiled anew");
    return std::nullopt;
  }
}

// Returns the file that the bytes are from, for messages, or "" if there is none. Requires state_mutex_.
std::string RuntimeCacheHandle::source_locked() const {
  std::string source;
  for (const auto& [file, store] : stores_) {
    if (store.contained) {
      return file;
    }
    if (store.digest && source.empty()) {
      source = file; // of the original, if this is a copy
    }
  }
  return source;
}

// Returns null if the handle is not live on `device`.
std::shared_ptr<IRuntimeCache> RuntimeCacheHandle::live_cache(c10::Device device) const {
  const std::lock_guard lock(state_mutex_);
  if (const auto* lives = std::get_if<Lives>(&contents_)) {
    for (const auto& live : *lives) {
      if (live->device() == device) {
        return live->cache();
      }
    }
  }
  return nullptr;
}

// Returns the live cache of the kind that has `file_name`, or null if there is none.
std::shared_ptr<LiveRuntimeCache> RuntimeCacheHandle::live_of_kind(const std::string& file_name) const {
  const std::lock_guard lock(state_mutex_);
  if (const auto* lives = std::get_if<Lives>(&contents_)) {
    for (const auto& live : *lives) {
      if (live->kind() && live->kind()->file_name() == file_name) {
        return live;
      }
    }
  }
  return nullptr;
}

void RuntimeCacheHandle::count(int64_t Statistics::* event) {
  const std::lock_guard lock(state_mutex_);
  ++(statistics_.*event);
}

const std::string& RuntimeCacheHandle::path_or_default(const std::string& path) const {
  if (path.empty() && path_.empty()) {
    TORCHTRT_THROW_ERROR("This runtime cache has no path of its own, so load() and save() need one as their argument");
  }
  return path.empty() ? path_ : path;
}

// Replaces the bytes of a pending handle with `bytes`, which are those of `files`, and returns the old ones. Requires
// state_mutex_.
at::Tensor RuntimeCacheHandle::take(at::Tensor bytes, const std::vector<std::string>& files) {
  forget_stores();
  for (const std::string& file : files) {
    stores_[file].digest = hash(view(bytes));
  }
  return std::exchange(std::get<at::Tensor>(contents_), std::move(bytes));
}

// Requires state_mutex_.
void RuntimeCacheHandle::forget_stores() {
  for (auto& [path, store] : stores_) {
    store.contained.reset();
    store.digest.reset();
  }
}

// Like serialize(). Requires state_mutex_.
at::Tensor RuntimeCacheHandle::serialize_locked() const {
  const at::Tensor bytes = bytes_locked();
  return std::holds_alternative<Lives>(contents_) ? bytes : at::_lazy_clone(bytes);
}

// Returns the bytes, merged for all devices. Callers must not write to them. Requires state_mutex_.
at::Tensor RuntimeCacheHandle::bytes_locked() const {
  if (const auto* pending = std::get_if<at::Tensor>(&contents_)) {
    return *pending;
  }
  Lives lives = std::get<Lives>(contents_);
  if (was_directory_) {
    const std::optional<RuntimeCacheKind> kind = lives.front()->kind();
    std::erase_if(lives, [&kind](const auto& live) { return live->kind() != kind; });
  }
  return merged_bytes(lives);
}

// Returns the merged bytes of `lives`. Callers must not write to them. Requires state_mutex_.
at::Tensor RuntimeCacheHandle::merged_bytes(const Lives& lives) const {
  at::Tensor bytes;
  for (const auto& live : lives) {
    const at::Tensor more = live->serialize();
    if (!more.defined()) {
      TORCHTRT_THROW_ERROR("TensorRT-RTX could not serialize the runtime cache '" << path_ << "'");
    }
    if (!bytes.defined()) {
      bytes = more;
    } else if (!std::ranges::equal(view(bytes), view(more))) {
      const auto merged = lives.front()->merge(view(more), view(bytes));
      if (merged.bytes.defined()) {
        bytes = merged.bytes;
      } else {
        LOG_WARNING(
            "The runtime cache '" << path_ << "' keeps no kernels of " << live->device()
                                  << ", because they can't be merged with those of " << lives.front()->device() << ": "
                                  << merged.reason_against);
      }
    }
  }
  return bytes;
}

// Gives bytes to a live cache. If it rejects them, logs a warning and returns false. `source` is the file that they are
// from, or "". Requires state_mutex_.
bool RuntimeCacheHandle::feed(LiveRuntimeCache& live, View bytes, const std::string& source) {
  if (live.deserialize(bytes)) {
    return true;
  }
  report_rejection(bytes.size(), source, "They are not used: kernels will be compiled anew");
  return false;
}

// Gives the bytes to each of `lives`. Returns true if any of them accepts them. Requires state_mutex_.
bool RuntimeCacheHandle::feed_all(const Lives& lives, const Loaded& loaded) {
  bool is_accepted = false;
  for (const auto& live : lives) {
    is_accepted |= feed(*live, view(loaded.bytes), loaded.file);
  }
  return is_accepted;
}

// Logs a warning once per file. Requires state_mutex_.
void RuntimeCacheHandle::report_rejection(size_t size, const std::string& source, const char* consequence) {
  const bool is_news = source.empty() || !std::exchange(stores_[source].has_warned_of_rejection, true);
  std::ostringstream text;
  text << "TensorRT-RTX rejected the " << size << " bytes of "
       << (source.empty() ? "a runtime cache given to it" : "the runtime cache '" + source + "'")
       << ": they are damaged, or come from another TensorRT-RTX version, GPU, operating system or CUDA driver. "
       << consequence;
  count_rejection(text.str(), is_news);
}

// Requires state_mutex_.
void RuntimeCacheHandle::count_rejection(const std::string& message, bool is_news) {
  ++statistics_.rejections;
  statistics_.last_rejection = message;
  TORCHTRT_LOG(is_news ? util::logging::LogLevel::kWARNING : util::logging::LogLevel::kINFO, message);
}

} // namespace torch_tensorrt::core::runtime
