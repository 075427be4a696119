// Emulated CUDA cards for a CPU build of PyTorch. A tensor on a card has the dispatch key and the device of CUDA, and its
// bytes are in main memory. The operations themselves are in fake_card.py.
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/set_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <array>
#include <mutex>
#include <unordered_map>

namespace {

constexpr int kMaxCards = 8;
int card_count = 1;
thread_local c10::DeviceIndex current_card = 0;

c10::Device card_device(c10::DeviceIndex index) {
  return c10::Device(c10::DeviceType::CUDA, index < 0 ? current_card : index);
}

// There is one stream on each card, and its work is done when it is issued.
struct CardGuard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device device) const override {
    c10::Device previous = card_device(-1);
    current_card = card_device(device.index()).index();
    return previous;
  }
  c10::Device getDevice() const override { return card_device(-1); }
  void setDevice(c10::Device device) const override { exchangeDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current_card = device.index(); }
  c10::DeviceIndex deviceCount() const noexcept override { return static_cast<c10::DeviceIndex>(card_count); }
  c10::Stream getStream(c10::Device device) const noexcept override { return stream_of(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return stream_of(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream_of(stream.device()); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}

 private:
  static c10::Stream stream_of(c10::Device device) {
    return c10::Stream(c10::Stream::DEFAULT, card_device(device.index()));
  }
};

// What a card has allocated, in bytes.
struct Memory {
  int64_t used = 0;
  int64_t peak = 0;
  int64_t total = 0;
  int64_t used_by_others = 0;
};

// The owner of a card's storage. It keeps the storage in main memory alive.
struct Allocation {
  c10::Storage host;
  int64_t bytes;
  c10::DeviceIndex card;
};

std::mutex mutex;
std::array<Memory, kMaxCards> memories;
// The card's storage for each storage in main memory, so that views of one storage stay views of one storage.
std::unordered_map<c10::StorageImpl*, c10::weak_intrusive_ptr<c10::StorageImpl>> card_storages;

std::string mebibytes(int64_t bytes) { return c10::str(bytes >> 20, ".", ((bytes & 0xFFFFF) * 100) >> 20, " MiB"); }

void reserve(c10::DeviceIndex card, int64_t bytes) {
  Memory& memory = memories.at(card);
  int64_t limit = memory.total - memory.used_by_others;
  // The words are those of c10/cuda/CUDACachingAllocator.cpp.
  TORCH_CHECK_WITH(
      OutOfMemoryError, bytes <= 0 || memory.used + bytes <= limit,
      "CUDA out of memory. Tried to allocate ", mebibytes(bytes), ". GPU ", static_cast<int>(card),
      " has a total capacity of ", mebibytes(memory.total), " of which ",
      mebibytes(std::max<int64_t>(limit - memory.used, 0)), " is free.");
  memory.used += bytes;
  memory.peak = std::max(memory.peak, memory.used);
}

void release(void* context) {
  auto* allocation = static_cast<Allocation*>(context);
  {
    std::lock_guard<std::mutex> locked(mutex);
    card_storages.erase(allocation->host.unsafeGetStorageImpl());
    memories.at(allocation->card).used -= allocation->bytes;
  }
  delete allocation;
}

Allocation* allocation_of(const c10::StorageImpl& storage) {
  return static_cast<Allocation*>(storage.data_ptr().get_context());
}

at::Tensor tensor_on(c10::Storage storage, const at::Tensor& like) {
  c10::Device device = storage.device();
  at::Tensor result =
      at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, std::move(storage), like.key_set(), like.dtype());
  c10::TensorImpl* content = result.unsafeGetTensorImpl();
  content->_change_backend_component_keys(device);
  content->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return result;
}

at::Tensor to_host(const at::Tensor& tensor) {
  return tensor_on(allocation_of(*tensor.storage().unsafeGetStorageImpl())->host, tensor);
}

at::Tensor to_card(const at::Tensor& tensor, int64_t index) {
  c10::Storage host = tensor.storage();
  const auto bytes = static_cast<int64_t>(host.nbytes());
  const auto card = card_device(static_cast<c10::DeviceIndex>(index)).index();
  std::lock_guard<std::mutex> locked(mutex);
  auto entry = card_storages.find(host.unsafeGetStorageImpl());
  if (entry != card_storages.end()) {
    if (auto storage = entry->second.lock()) {
      Allocation* allocation = allocation_of(*storage);
      if (allocation->bytes != bytes || storage->data() != host.data()) {  // an operation has resized it
        reserve(card, bytes - allocation->bytes);
        allocation->bytes = bytes;
        storage->set_nbytes(bytes);
        c10::DataPtr moved(host.mutable_data(), allocation, &release, card_device(card));
        storage->set_data_ptr(std::move(moved)).release_context();
      }
      return tensor_on(c10::Storage(storage), tensor);
    }
  }
  reserve(card, bytes);
  c10::DataPtr data(host.mutable_data(), new Allocation{host, bytes, card}, &release, card_device(card));
  auto storage = c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), bytes, std::move(data), nullptr, /*resizable=*/false);
  card_storages.insert_or_assign(host.unsafeGetStorageImpl(), c10::weak_intrusive_ptr<c10::StorageImpl>(storage));
  return tensor_on(c10::Storage(storage), tensor);
}

// Give a tensor the storage, sizes and strides of another, as resize_ and transpose_ do.
void assign(const at::Tensor& tensor, const at::Tensor& source) {
  c10::TensorImpl* content = tensor.unsafeGetTensorImpl();
  content->set_storage_keep_dtype(source.storage());
  content->set_sizes_and_strides(source.sizes(), source.strides(), source.storage_offset());
}

std::vector<int64_t> memory_of(int64_t card) {
  std::lock_guard<std::mutex> locked(mutex);
  const Memory& memory = memories.at(card);
  return {memory.used, memory.peak, memory.total, memory.used_by_others};
}

void set_memory(int64_t card, int64_t total, int64_t used_by_others) {
  std::lock_guard<std::mutex> locked(mutex);
  memories.at(card).total = total;
  memories.at(card).used_by_others = used_by_others;
}

void reset_peak(int64_t card) {
  std::lock_guard<std::mutex> locked(mutex);
  memories.at(card).peak = memories.at(card).used;
}

at::Tensor& set_storage(at::Tensor& tensor, c10::Storage source) { return at::native::set_(tensor, source); }

}  // namespace

namespace at {

struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return card_count > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return static_cast<DeviceIndex>(card_count); }
  int getNumGPUs() const override { return card_count; }
  DeviceIndex current_device() const override { return current_card; }
  DeviceIndex getCurrentDevice() const override { return current_card; }
  void setCurrentDevice(DeviceIndex index) const override { current_card = index; }
  Allocator* getPinnedMemoryAllocator() const override { return GetCPUAllocator(); }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at

C10_REGISTER_GUARD_IMPL(CUDA, CardGuard)

TORCH_LIBRARY(fake_card, library) {
  library.def("to_host(Tensor tensor) -> Tensor", &to_host);
  library.def("to_card(Tensor tensor, int card) -> Tensor", &to_card);
  library.def("assign(Tensor tensor, Tensor source) -> ()", &assign);
  library.def("memory(int card) -> int[]", &memory_of);
  library.def("set_memory(int card, int total, int used_by_others) -> ()", &set_memory);
  library.def("reset_peak(int card) -> ()", &reset_peak);
  library.def("set_count(int cards) -> ()", [](int64_t cards) { card_count = static_cast<int>(cards); });
  library.def("current() -> int", []() -> int64_t { return current_card; });
  library.def("set_current(int card) -> ()", [](int64_t card) { current_card = static_cast<c10::DeviceIndex>(card); });
}

// These take a storage, which a fallback in Python cannot replace.
TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("set_.source_Storage", &set_storage);
  library.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
}
