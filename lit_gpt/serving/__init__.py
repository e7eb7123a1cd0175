"""HTTP server with OpenAI's API, a chat page, and limits that keep both available.

The path of a request: `middleware` (log, host and key, size and time of the body) → FastAPI's routes (`app`, `chat`,
`response_api`, `completions`, `embeddings`; `openapi` describes them) → `admission` (a bounded queue) → `service` (its
sequences in the engine, ended when the client disconnects) → `responses` (JSON or server-sent events). The content of a
request is never used as a path or logged.

Needs the extra `serve`.
"""
