// The server's API as the page uses it: which model there is, and an answer as a stream of pieces.

class RequestError extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

function headers() {
  const sent = { "Content-Type": "application/json" };
  if (store.key) sent.Authorization = `Bearer ${store.key}`;
  return sent;
}

async function refusalOf(response) {
  let error = {};
  try { error = (await response.json()).error || {}; } catch { /* an answer that is not ours */ }
  let message = error.message || `The server answered with status ${response.status}.`;
  if (response.status === 401) message = "This server asks for an API key: give it in the settings.";
  return new RequestError(message, response.status, error.code);
}

async function fetchModel() {
  const response = await fetch("v1/models", { headers: headers(), cache: "no-store" });
  if (!response.ok) throw await refusalOf(response);
  return (await response.json()).data[0];
}

// Yields {text} for each piece, and at last {finish, usage}.
async function* streamAnswer(path, body, signal) {
  const sent = JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
  const response = await fetch(path, { method: "POST", headers: headers(), body: sent, signal });
  if (!response.ok) throw await refusalOf(response);
  let finish = null, usage = null;
  for await (const data of serverSentEvents(response.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new RequestError(chunk.error.message, 0, chunk.error.code);
    if (chunk.usage) usage = chunk.usage;
    const choice = chunk.choices[0];
    if (!choice) continue;
    const text = choice.delta ? choice.delta.content : choice.text;
    if (text) yield { text };
    finish = choice.finish_reason || finish;
  }
  if (finish === null) throw new RequestError("The connection ended before the answer did.", 0, "cut_off");
  yield { finish, usage };
}

async function* serverSentEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const events = (held + value).split("\n\n");
      held = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Sampling fields of a request, from the settings; what is empty is left to the server.
function samplingFields() {
  const { settings } = store;
  const body = { temperature: settings.temperature, top_p: settings.top_p };
  for (const name of ["top_k", "max_tokens", "repetition_penalty", "seed"]) {
    if (settings[name] !== "" && Number.isFinite(Number(settings[name]))) body[name] = Number(settings[name]);
  }
  const stop = settings.stop.split(",").map((each) => each.trim().replace(/\\n/g, "\n")).filter(Boolean);
  if (stop.length) body.stop = stop;
  return body;
}
