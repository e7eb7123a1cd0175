"""The HTTP server: OpenAI's API, a page for people, and the limits that keep both standing.

A request's way: `connection` (sockets) → `edge` (its number, its record, no fault leaves here) → `access` (host and
key) → `body` (size, time, well-formed JSON) → FastAPI's routes (`chat`, `completions`, `embeddings`, `models`,
`status`) → `admission` (a bounded queue) → `active` (its sequences in the engine, ended with the client) → JSON or
server-sent events. What a request says reaches neither a path nor a log.

Needs the extra `serve`.
"""
