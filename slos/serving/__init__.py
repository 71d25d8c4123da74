"""The policies inside vLLM.

Around a server: `launch` starts it, `settings` holds its options, `calls` waits for it and
calibrates it, `guard` ends it. In its front end: `middleware` checks `objectives`, `answers` ends
requests that are refused or cut off. In its engine: `vllm_plugin` shows a policy each request as
`tracked`, with its `prefix_hits`, and does what it says within `cuts`; `belief` learns how long
steps take; `load_report` reports to a router, `metrics` to Prometheus; `failsafe` keeps their
failures from the engine, `lengths` those of a length predictor.
"""
