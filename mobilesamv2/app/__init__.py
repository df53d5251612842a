"""The interactive demo."""
