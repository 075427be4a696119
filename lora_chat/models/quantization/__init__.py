"""Quantized weights: dequantizing them, caching them and multiplying with them.

- cpu_linear: forwards of quantized layers that dequantize into a shared buffer
- dequantize: the dense weight of a linear layer in any format
- dequantized_model: a quantized base as a 16-bit model with the same weights
- gpu_weight_cache: dense weights of decoder layers, cached on a GPU during training
- self_test: a try of bitsandbytes on a device
- weight_cache: dense weights that are cached beside quantized layers on a CPU
"""
