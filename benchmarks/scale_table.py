"""The table of docs/scale.md: what builds and queries would take, from sizes alone.

python benchmarks/scale_table.py
"""

from whence.pipeline import forecast_scale
from whence.pipeline.forecast.scale import size_text, time_text
from whence.settings import BuildConfig, Cluster, Load

CASES = [
    (shape, method, examples, gpus)
    for shape, gpus in (("llama-8b", 8), ("llama-70b", 64))
    for method in ("aligned", "lorif", "logra")
    for examples in (10**6, 10**9)
]


def main():
    for shape, method, examples, gpus in CASES:
        found = forecast_scale(shape, Load(examples=examples), BuildConfig(method=method), Cluster(gpus=gpus))
        times = [time_text(found.build_seconds), time_text(found.scan_seconds)]
        times.append(time_text(found.fit_seconds) if found.fit_seconds else "")
        exponent = len(str(examples)) - 1
        print(f"| {shape} | {method} | 10^{exponent} | {gpus} | {size_text(found.store_bytes)} | {' | '.join(times)} |")


if __name__ == "__main__":
    main()
