"""Asks a router as openai-python and SGLang's users do, and compares what comes back. Usage: check.py PORT"""

import json
import sys
import time
import urllib.request

from openai import BadRequestError, OpenAI

BASE = f"http://127.0.0.1:{sys.argv[1]}"


def wait() -> None:
    """Until the router has found its workers."""
    for _ in range(600):
        try:
            chat("Hello")
            return
        except Exception as error:  # noqa: BLE001: whatever a starting router says
            last = error
            time.sleep(0.1)
    sys.exit(f"{BASE} is not ready: {last}")


def post(path: str, body: dict) -> dict:
    """A request of SGLang's own API."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, {"content-type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=60))


client = OpenAI(base_url=BASE + "/v1", api_key="none", timeout=60, max_retries=0)


def chat(text: str, **options) -> str:
    """One turn, greedy."""
    answer = client.chat.completions.create(
        model="pd-tiny", messages=[{"role": "user", "content": text}], temperature=0, **options
    )
    return answer.choices[0].message.content


wait()
fact = "The password of Mira is tulip-4711. " + "The old river is quiet. " * 80 + "What is the password of Mira?"
said = chat(fact)
assert "tulip-4711" in said, said

stream = client.chat.completions.create(
    model="pd-tiny",
    messages=[{"role": "user", "content": fact}],
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
text, usage = "", None
for event in stream:
    if event.choices and event.choices[0].delta.content:
        text += event.choices[0].delta.content
    usage = event.usage or usage
assert text == said, (text, said)
assert usage is not None and usage.completion_tokens > 3, usage

plain = client.completions.create(model="pd-tiny", prompt="The old river", temperature=0, max_tokens=8)
assert plain.usage.completion_tokens <= 8 and plain.choices[0].text, plain

drawn = [
    client.completions.create(model="pd-tiny", prompt="The old", temperature=1.0, seed=7, max_tokens=12).choices[0].text
    for _ in range(2)
]
assert drawn[0] == drawn[1], drawn

one = post("/generate", {"text": "The old river", "sampling_params": {"temperature": 0, "max_new_tokens": 8}})
assert one["text"] == plain.choices[0].text, (one, plain)
assert one["meta_info"]["completion_tokens"] <= 8, one
# A batch: sglang-router takes lists of token ids, not of texts.
ids = [[401, 402, 403, 404, 405], [501, 502, 503]]
sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
both = post("/generate", {"input_ids": ids, "sampling_params": sampling})
single = [post("/generate", {"input_ids": one, "sampling_params": sampling}) for one in ids]
assert [answer["output_ids"] for answer in both] == [answer["output_ids"] for answer in single], (both, single)

try:
    client.chat.completions.create(model="pd-tiny", messages=[{"role": "user", "content": "x"}], temperature=-3)
except BadRequestError as error:
    assert "temperature" in str(error), error
else:
    sys.exit("a temperature of -3 was taken")
print(f"{BASE}: openai-python and /generate agree")
