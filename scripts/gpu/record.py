"""A part of the kit's run: its commands, each under a limit of its own, and the record that they leave."""
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager

# Of a part, in seconds: under four minutes with what ends it.
LIMIT = 230
# What a command that runs too long has, to end by itself.
GRACE = 5
TAIL = 60
# Characters of its text that a record keeps.
TEXT = 10_000

SAMPLED = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu", "memory.used")


class Part:
    """`command` names the only one to run; what others told before is kept."""

    def __init__(self, name, out, root, command=""):
        self.name, self.out, self.only = name, out, command
        self.path = out / f"{name}.json"
        out.mkdir(parents=True, exist_ok=True)
        before = json.loads(self.path.read_text()) if command and self.path.exists() else {}
        commit = root / "COMMIT"
        self.told = {**before, "part": name, "passed": False, "commit": commit.read_text().splitlines() if commit.exists() else None}
        for kept in ("commands", "checks"):
            self.told.setdefault(kept, {})
        for past in ("skipped", "fault"):
            self.told.pop(past, None)
        self.log = open(out / f"{name}.log", "a" if command else "w")
        self.started = time.monotonic()
        self.told["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # Kernels are compiled once for all parts. A home that cannot be written must not matter.
        cache = os.path.abspath(os.environ.get("KIT_CACHE") or root / "cache")
        self.environment = {**os.environ, "XDG_CACHE_HOME": cache, "TORCHINDUCTOR_CACHE_DIR": cache + "/torch", "NO_COLOR": "1"}
        self.write()

    def left(self):
        return LIMIT - (time.monotonic() - self.started)

    def run(self, name, argv, limit=LIMIT, sampler=None):
        """Runs a command: the record of what it told, with all its text, or None where it failed or was not asked for."""
        argv = [str(word) for word in argv]
        if self.only and self.only != name:
            before = self.told["commands"].get(name)
            return before if before and before["exit"] == 0 else None
        limit = min(limit, self.left())
        self.told["commands"][name] = record = {"command": shlex.join(argv)}
        print(f"{self.name}: {name} ... ", end="", flush=True)
        self.log.write(f"\n$ {record['command']}\n")
        self.log.flush()
        if limit < 5:
            record.update(exit=None, why="no time was left for it", tail="")
        else:
            with sampler() if sampler else none() as samples:
                record.update(execute(argv, limit, self.environment, self.log))
            if samples:
                record["card"] = samples
        text, passed = record.get("text", ""), record["exit"] == 0
        if text:
            record["text"] = text[-TEXT:]
        if passed:
            record.pop("tail")
        else:
            # PyTorch's compiler, ended in the middle, leaves halves of files that it would trust.
            shutil.rmtree(self.environment["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
        print(f"{'done' if passed else record.get('why') or 'exit ' + str(record['exit'])} ({record.get('seconds', 0)} s)", flush=True)
        self.write()
        return {**record, "text": text} if passed else None

    def check(self, name, holds, details=None):
        """What must hold over several commands."""
        if self.only:
            return
        self.told["checks"][name] = {"passed": bool(holds), **(details or {})}
        print(f"{self.name}: {name}: {'yes' if holds else 'NO'}", flush=True)

    def skip(self, why):
        self.told["skipped"] = why
        print(f"{self.name}: skipped: {why}", flush=True)

    def fail(self, why):
        self.told["fault"] = why
        print(f"{self.name}: {why}", flush=True)

    def end(self):
        told = self.told
        told["seconds"] = round(time.monotonic() - self.started, 1)
        results = [record["exit"] == 0 for record in told["commands"].values()]
        results += [check["passed"] for check in told["checks"].values()]
        told["passed"] = "skipped" in told or (all(results) and bool(results) and "fault" not in told)
        self.write()
        self.log.close()
        return told["passed"]

    def write(self):
        # Beside and then in place: whoever ends this in the middle finds a whole file.
        beside = self.path.with_suffix(".next")
        beside.write_text(json.dumps(self.told, indent=1) + "\n")
        beside.replace(self.path)


def execute(argv, limit, environment, log):
    """Exit code, time and output of a command, which is ended after `limit` seconds with all that it started."""
    started = time.monotonic()
    record = {"exit": None, "tail": ""}
    with tempfile.TemporaryFile("w+", errors="replace") as output, tempfile.TemporaryFile("w+", errors="replace") as errors:
        try:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment, start_new_session=True)
        except OSError as error:
            return {**record, "why": str(error), "seconds": 0.0, "text": ""}
        try:
            record["exit"] = process.wait(limit)
        except subprocess.TimeoutExpired:
            record["why"] = f"ended after {limit:.0f} s"
        finally:
            end(process)
        record["seconds"] = round(time.monotonic() - started, 1)
        texts = []
        for file in (output, errors):
            file.seek(0)
            texts.append(file.read())
    log.write("".join(texts))
    record["tail"] = "\n".join("".join(texts).splitlines()[-TAIL:])
    try:
        record["json"] = json.loads(texts[0])
    except ValueError:
        record["text"] = texts[0]
    return record


def end(process):
    """Ends a command and its children, which share its session."""
    for number, wait in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            pass
    process.poll()


@contextmanager
def none():
    yield None


@contextmanager
def sampled():
    """Clocks, power, temperature and memory of the card while a command runs, twice a second; under load where there is one."""
    samples = {}
    query = ["nvidia-smi", "--query-gpu=" + ",".join(SAMPLED), "--format=csv,noheader,nounits", "--id=0", "--loop-ms=500"]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        try:
            process = subprocess.Popen(query, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, start_new_session=True)
        except OSError:
            yield samples
            return
        try:
            yield samples
        finally:
            end(process)
            output.seek(0)
            samples.update(summary(output.read().splitlines()))


def summary(lines):
    """Medians over the samples in which the card was busy, and the most memory that was in use."""
    rows = []
    for line in lines:
        try:
            rows.append([float(value) for value in line.split(",")])
        except ValueError:  # A value that the card does not tell.
            continue
    rows = [row for row in rows if len(row) == len(SAMPLED)]
    if not rows:
        return {}
    busy = [row for row in rows if row[4] >= 50] or rows
    sm, memory, power, temperature = (round(statistics.median(column)) for column in list(zip(*busy))[:4])
    return dict(samples=len(rows), busy_samples=len(busy), sm_mhz=sm, memory_mhz=memory, power_w=power, temperature_c=temperature,
                most_memory_mb=round(max(row[5] for row in rows)))
