"""The HTTP server: OpenAI's API, a chat page, and the limits that keep both available.

The path of a request: `middleware` (log, host and key, size and time of the body) → FastAPI's routes (`app`, `chat`,
`completions`, `embeddings`) → `admission` (a bounded queue) → `service` (its sequences in the engine, ended when the
client disconnects) → `responses` (JSON or server-sent events). What a request says reaches neither a path nor a log.

Needs the extra `serve`.
"""
