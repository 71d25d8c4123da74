"""The policies inside vLLM.

Around a server: `launch` starts it, `settings` is what it may be told, `calls` waits for it and
calibrates it, `guard` ends it. In its front end: `middleware` checks `objectives`, `answers` ends
what is refused or cut off. In its engine: `vllm_plugin` shows a policy each request as `tracked`,
with its `prefix_hits`, and does what it says within `cuts`; `belief` learns how long steps take,
`load_report` tells a router, `metrics` Prometheus, and `beside` keeps their failures from the
engine.
"""
