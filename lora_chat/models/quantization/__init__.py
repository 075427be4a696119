"""Quantized weights: dequantizing them, caching them and multiplying with them.

- coverage: the share of the weights that is quantized
- cpu_linear: forwards of quantized layers that dequantize into a shared buffer
- dequantize: the dense weight of a linear layer in any format
- dequantized_model: a quantized base as a 16-bit model with the same weights
- gpu_weight_cache: dense weights of decoder layers, cached on a GPU during training
- layer_formats: whether the weights in files have the format that the config declares
- quantize_on_card: quantization on a GPU of weights that are stored on the CPU
- quantized_base: loading of a base that is quantized by Transformers or already
- self_test: a try of bitsandbytes on a device
- stored_weights: weights in FP8 and MXFP4, dequantized while they are read
- weight_cache: dense weights that are cached beside quantized layers on a CPU
"""
