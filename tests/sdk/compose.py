"""Holds docker-compose.yml, the proxy's configuration and the Dockerfile to what they promise: no engine is needed."""

import pathlib
import re
import sys
import tomllib

import yaml

root = pathlib.Path(sys.argv[1])
compose_text = (root / "docker-compose.yml").read_text()
compose = yaml.safe_load(compose_text)
services = compose["services"]
config = tomllib.loads((root / ".docker/longshore.toml").read_text())
proxy = (root / ".docker/haproxy.cfg").read_text()


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def lines(text):
    """The settings of a file, without its comments."""
    return [line.split("#")[0].split() for line in text.splitlines() if line.split("#")[0].strip()]


ours = {name: service for name, service in services.items() if service.get("image") == "longshore"}
intakes = {name for name, service in ours.items() if service["command"] == ["serve"]}
workers = {name for name, service in ours.items() if service["command"] == ["work"]}
assert len(intakes) == 2 and len(workers) == 2, services.keys()
assert set(services) == {"proxy", "migrate", "sandbox", "postgres", "redis"} | intakes | workers

# One builds the image, and the others do not look for it elsewhere.
assert [name for name, service in services.items() if "build" in service] == ["migrate"]
for name in set(ours) - {"migrate"}:
    assert ours[name]["pull_policy"] == "never", name
assert "pull_policy" not in ours["migrate"]

# Nothing of ours is root, or writes anywhere but into its volume.
for name, service in (ours | {"proxy": services["proxy"]}).items():
    assert service["read_only"] is True, name
    assert service["cap_drop"] == ["ALL"], name
    assert service["security_opt"] == ["no-new-privileges:true"], name
    assert "privileged" not in service and service.get("user", "haproxy") == "haproxy", name

# Everything is watched, and waits until what it needs is well.
for name, service in services.items():
    check = service["healthcheck"]
    assert check.get("disable") is True if name == "migrate" else check["test"][0] == "CMD", name
    for needed, how in service.get("depends_on", {}).items():
        ended = needed == "migrate"
        assert how["condition"] == ("service_completed_successfully" if ended else "service_healthy"), name
        assert needed in services
assert set(services["proxy"]["depends_on"]) == intakes
for name in intakes | workers:
    assert set(services[name]["depends_on"]) == {"postgres", "redis", "migrate"}, name
    port = config["workers" if name in workers else "server"]["listen"].split(":")[1]
    asked = services[name]["healthcheck"]["test"][-1]
    assert f"/dev/tcp/127.0.0.1/{port} " in asked and "GET /readyz " in asked, asked
    # A `$` alone would be taken for a variable of Compose's.
    assert "$status" not in asked.replace("$$status", ""), asked

# Who is told to stop has the time that it was promised.
ending = seconds(config["server"]["drain_delay"]) + seconds(config["workers"]["drain"]) + 2
for name in intakes | workers:
    assert seconds(services[name]["stop_grace_period"]) > ending, name

# No secret has a value that somebody could keep without knowing it, and nothing is published beyond this machine.
for name, rest in re.findall(r"\$\{(LONGSHORE_\w+|\w+_API_KEY)(.*?)\}", compose_text):
    if re.search("KEY|PASSWORD|SECRET", name):
        assert rest == ":-" or rest.startswith(":?"), (name, rest)
for name in ("LONGSHORE_ADMIN_KEY", "LONGSHORE_POSTGRES_PASSWORD"):
    assert ours["intake-1"]["environment"][name].startswith("${" + name + ":?"), name
for name, service in services.items():
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), (name, port)

# The proxy repeats nothing that was sent, knows all intakes, and asks them whether they are ready more often than they
# go on listening. It waits for longer than a request may.
settings = lines(proxy)
assert [line for line in settings if line[0] == "retry-on"] == [["retry-on", "conn-failure"]]
assert ["http-reuse", "never"] in settings and ["option", "redispatch", "1"] in settings
assert {line[1] for line in settings if line[0] == "server"} == intakes
assert ["http-check", "send", "meth", "GET", "uri", "/readyz"] in settings
check = next(line for line in settings if line[0] == "default-server")
every, falls = seconds(check[check.index("inter") + 1]), int(check[check.index("fall") + 1])
assert every * falls < seconds(config["server"]["drain_delay"]), check
for line in settings:
    if line[:2] in (["timeout", "client"], ["timeout", "server"]):
        assert seconds(line[2]) > 60, line
assert not any(line[0] == "http-request" for line in settings), "no limit, no rewriting"

# The image: from the lock file, and not root.
dockerfile = lines((root / "Dockerfile").read_text())
assert any("--locked" in line and "build" in line for line in dockerfile)
user = [line for line in dockerfile if line[0] == "USER"][-1][1]
assert user.split(":")[0].isdigit() and user.split(":")[0] != "0", user
images = [line[1] for line in dockerfile if line[0] == "FROM"]
images += [service["image"] for name, service in services.items() if name not in ours]
for image in images:
    assert ":" in image and not image.endswith(":latest"), image
toolchain = tomllib.loads((root / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
assert images[0].startswith(f"rust:{toolchain}-"), (images[0], toolchain)

print("ok")
