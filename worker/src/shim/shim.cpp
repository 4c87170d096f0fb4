// What libtorch has and tch does not wrap, as plain C functions for src/shim.rs. Each returns null, or what went wrong as a
// string that the caller gives back to bam_free_message. Tensors are torch-sys's own handles: pointers to at::Tensor.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <c10/core/CachingDeviceAllocator.h>

namespace {

template <typename Work>
char *report(Work work) {
  try {
    work();
    return nullptr;
  } catch (const std::exception &error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception of an unknown kind");
  }
}

std::vector<at::Tensor> list(at::Tensor *const *tensors, int64_t count) {
  std::vector<at::Tensor> all;
  all.reserve(count);
  for (int64_t i = 0; i < count; ++i) all.push_back(*tensors[i]);
  return all;
}

}  // namespace

extern "C" {

void bam_free_message(char *message) { std::free(message); }

// The gradients of a LayerNorm's input, weight and bias.
char *bam_layer_norm_backward(at::Tensor **results, const at::Tensor *gradient, const at::Tensor *input,
                              const at::Tensor *mean, const at::Tensor *inverse, const at::Tensor *weight,
                              const at::Tensor *bias) {
  return report([&] {
    const int64_t width = input->size(-1);
    auto [of_input, of_weight, of_bias] = at::native_layer_norm_backward(
        *gradient, *input, {width}, *mean, *inverse, *weight, *bias, {true, true, true});
    results[0] = new at::Tensor(of_input);
    results[1] = new at::Tensor(of_weight);
    results[2] = new at::Tensor(of_bias);
  });
}

// Attention of sequences of any lengths, one behind the other: output, log of the softmax's sums, and two tensors from which
// the backward pass finds the dropout mask again.
char *bam_flash_attention(at::Tensor **results, const at::Tensor *query, const at::Tensor *key, const at::Tensor *value,
                          const at::Tensor *query_starts, const at::Tensor *key_starts, int64_t longest_query,
                          int64_t longest_key, double dropout) {
  return report([&] {
    auto [output, sums, state, unused, mask] = at::_flash_attention_forward(
        *query, *key, *value, *query_starts, *key_starts, longest_query, longest_key, dropout,
        /*is_causal=*/false, /*return_debug_mask=*/false);
    results[0] = new at::Tensor(output);
    results[1] = new at::Tensor(sums);
    results[2] = new at::Tensor(state);
    results[3] = new at::Tensor(unused);
  });
}

// One step of Adam with decoupled weight decay for a list of tensors that share their settings.
char *bam_fused_adamw(at::Tensor *const *values, at::Tensor *const *gradients, at::Tensor *const *first,
                      at::Tensor *const *second, int64_t count, const at::Tensor *step, double rate, double beta1,
                      double beta2, double decay, double epsilon, const at::Tensor *gradient_divisor) {
  return report([&] {
    const auto p = list(values, count), g = list(gradients, count), m = list(first, count), v = list(second, count);
    const std::vector<at::Tensor> steps(count, *step);
    at::_fused_adamw_(p, g, m, v, {}, steps, rate, beta1, beta2, decay, epsilon, /*amsgrad=*/false,
                      /*maximize=*/false, *gradient_divisor, std::nullopt);
  });
}

// Whether operations that could add up in any order have to do it in the same one every time. Memory that nobody has written is
// left as it is: bam reads none.
char *bam_set_deterministic(bool wanted) {
  return report([&] {
    at::globalContext().setDeterministicAlgorithms(wanted, /*warn_only=*/true);
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  });
}

// Whether products of float32 matrices may round their inputs to TensorFloat-32.
char *bam_allow_tf32(bool allowed) {
  return report([&] { at::globalContext().setAllowTF32CuBLAS(allowed); });
}

// Bytes of a GPU's memory: the most that tensors have had so far, what libtorch holds, free, in all.
char *bam_cuda_memory(int64_t device, int64_t *bytes) {
  return report([&] {
    auto *allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    const auto index = static_cast<c10::DeviceIndex>(device);
    const auto stats = allocator->getDeviceStats(index);
    const auto [free, total] = allocator->getMemoryInfo(index);
    bytes[0] = stats.allocated_bytes[0].peak;
    bytes[1] = stats.reserved_bytes[0].current;
    bytes[2] = static_cast<int64_t>(free);
    bytes[3] = static_cast<int64_t>(total);
  });
}

// Gives memory that libtorch holds and no tensor has back to the GPU, and forgets the peak.
char *bam_cuda_forget_peak(int64_t device) {
  return report([&] {
    auto *allocator = c10::getDeviceAllocator(c10::DeviceType::CUDA);
    allocator->emptyCache();
    allocator->resetPeakStats(static_cast<c10::DeviceIndex>(device));
  });
}

}  // extern "C"
