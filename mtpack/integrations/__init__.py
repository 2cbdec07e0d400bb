"""The mean over turns as the loss of Megatron-LM, Transformers and TRL."""
