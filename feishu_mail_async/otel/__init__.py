"""OpenTelemetry traces and metrics of an app's calls. Needs the extra `otel`.

    engine --events--> instrumentation --> spans      a span for each draft, with its calls as children
           <-snapshot-                 `-> metrics    counters and histograms; gauges, when a reader collects

Spans and measurements are timestamped by the SDK's clock; measured durations are those of the loop's clock.

All instrumented clients of one app in one loop share an instrumentation, because each of them would receive the
events of the whole app. It ends with the last of them, though other clients of the app may be open.
"""

try:
    import opentelemetry  # noqa: F401 - first: a missing extra is told by the package's name, not a module's

    from .instrumentation import instrument
except ImportError as missing:
    if not (missing.name or "").startswith("opentelemetry"):
        raise
    raise ImportError(
        f"otel: {missing.name} is missing; install it with: pip install 'feishu-mail-async[otel]'",
        name=missing.name,
    ) from None

__all__ = ["instrument"]
