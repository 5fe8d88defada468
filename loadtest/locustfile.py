"""For those who have locust: the same scenarios from its web page or command line.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000
    SCENARIO=mixed locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless -u 8 -t 30s

Beside each request's whole time it reports the time to its first token, as requests of the type TTFT. locust has a
closed loop alone: for latency under a given rate use loadtest/run.py.
"""

import os
import random
import sys
from pathlib import Path
from time import perf_counter

from locust import HttpUser, constant, task

sys.path.insert(0, str(Path(__file__).parent))
import scenarios
from client import TOKEN, key_headers

SCENARIO = scenarios.load(os.environ.get("SCENARIO", "short-chat"))


class Client(HttpUser):
    """Sends the next request when the one before is answered."""

    wait_time = constant(0)
    rng = random.Random(0)

    @task
    def request(self) -> None:
        route, body = SCENARIO.draw(self.rng)
        start = perf_counter()
        # Read as it comes: a buffer would hide the first token.
        with self.client.post(route, json=body, headers=key_headers(), stream=True, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
                return
            received = b""
            has_token = False
            for chunk in answer.iter_content(chunk_size=None):
                received += chunk
                if not has_token and TOKEN in received:
                    has_token = True
                    self._report_first(route, perf_counter() - start)
            # locust's own clock stops at the head, and its count of bytes trusts a header that streams have not.
            answer.request_meta["response_time"] = 1e3 * (perf_counter() - start)
            answer.request_meta["response_length"] = len(received)
            if b"event: error" in received:
                answer.failure("the stream ended in an error")

    def _report_first(self, route: str, seconds: float) -> None:
        self.environment.events.request.fire(
            request_type="TTFT", name=route, response_time=1e3 * seconds, response_length=0, exception=None, context={}
        )
