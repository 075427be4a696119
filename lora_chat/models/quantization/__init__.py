"""Quantized weights on the CPU: dequantized, cached, multiplied.

- cpu_linear: Quantised layers on a CPU that multiply with values made in one place, for one product after the other
- dequantize: The dense values that a frozen linear layer computes with, whatever it is stored as
- dequantized_model: A quantised base in 16 bits with the values it computes with, made layer by layer
- weight_cache: The frozen weights of quantised linear layers on a CPU
"""
