"""x"""


async def run(p):
    return iter([])
