"""The server of cost.py: it answers every call as the API answers a send, and says where it listens."""

import asyncio
from typing import Any, Final

from aiohttp import web
from children import obey

ANSWER: Final = {
    "code": 0,
    "msg": "success",
    "data": {
        "message_id": "TUlHc1NoWFhJMXgyUi9VZTNVL3h6UnlkRUdzPQ==",
        "thread_id": "tVGs1NoWFhJMXgyUi9VZTNVL3h6UnlkRUdzPQ==",
    },
}


async def answer(_: web.BaseRequest) -> web.Response:
    return web.json_response(ANSWER, headers={"X-Tt-Logid": "20261122090000A1B2C3D4E5F607182930"})


async def serve() -> None:
    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]

    async def where(_: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": f"http://{host}:{port}"}

    await obey(where)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
