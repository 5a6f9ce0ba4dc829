"""emoe serves mixture-of-experts language models whose experts do not all fit in device memory."""
