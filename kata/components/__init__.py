"""``kata-proxy`` and ``kata-shim``: Kata 1.x's programs, for a Kata 1.x runtime, with our parts behind them."""
