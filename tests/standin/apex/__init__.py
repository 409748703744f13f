"""Stands for NVIDIA's apex, which needs a GPU; see amp.py."""
