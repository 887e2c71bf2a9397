"""A part of the kit's run: its commands, each under a limit of its own, and the record that they leave."""
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import tarfile
import tempfile
import time
from contextlib import contextmanager

# Of a part, in seconds, unless it has a limit of its own.
LIMIT = 230
# What a command that runs too long has, to end by itself.
GRACE = 5
TAIL = 60
# Characters of its text that a record keeps.
TEXT = 10_000
# Bytes of what a command told on one stream that are read: its end. A program that tells the same forever fills a disk else.
READ = 4_000_000

SAMPLED = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "utilization.gpu", "memory.used")


class Part:
    """`command` names the only one to run; what others told before is kept. `facts` are of the run as a whole, such as the machine."""

    def __init__(self, name, out, root, environment, command="", limit=LIMIT, facts=None):
        self.name, self.out, self.only, self.limit, self.environment = name, out, command, limit, environment
        self.path = out / f"{name}.json"
        out.mkdir(parents=True, exist_ok=True)
        before = json.loads(self.path.read_text()) if command and self.path.exists() else {}
        commit = root / "COMMIT"
        self.told = {**before, "part": name, "passed": False, "commit": commit.read_text().splitlines() if commit.exists() else None, **(facts or {})}
        for kept in ("commands", "checks"):
            self.told.setdefault(kept, {})
        for past in ("skipped", "fault"):
            self.told.pop(past, None)
        self.log = open(out / f"{name}.log", "a" if command else "w")
        self.started = time.monotonic()
        self.told["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.write()

    def left(self):
        return self.limit - (time.monotonic() - self.started)

    def run(self, name, argv, limit=None, sampler=None):
        """Runs a command: the record of what it told, with all its text, or None where it failed or was not asked for."""
        argv = [str(word) for word in argv]
        if self.only and self.only != name:
            before = self.told["commands"].get(name)
            return before if before and before["exit"] == 0 else None
        limit = min(limit or self.left(), self.left())
        # What is read if nothing more can be written.
        self.told["commands"][name] = record = {"command": shlex.join(argv), "exit": None, "why": "it ran when the kit was ended"}
        self.write()
        print(f"{self.name}: {name} ... ", end="", flush=True)
        self.log.write(f"\n$ {record['command']}\n")
        self.log.flush()
        if limit < 5:
            record.update(why="no time was left for it", tail="")
        else:
            with sampler() if sampler else none() as samples:
                told = execute(argv, limit, self.environment, self.log)
            del record["why"]
            record.update(told)
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
        if self.only and self.only not in told["commands"]:
            self.fail(f"there is no command {self.only} in {self.name}")
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
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
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
            file.seek(max(0, file.seek(0, os.SEEK_END) - READ))
            texts.append(file.read().decode(errors="replace"))
    log.write("".join(texts))
    report = parsed(texts[0])
    record.update(dict(text=texts[0]) if report is None else dict(json=report))
    record["tail"] = "\n".join("".join(texts[report is not None:]).splitlines()[-TAIL:])
    return record


def parsed(text):
    """The JSON object that a program printed, alone or after other lines; NaN, which JSON has not, as a string."""
    for candidate in (text, (text.splitlines() or [""])[-1]):
        try:
            report = json.loads(candidate, parse_constant=str)
        except ValueError:
            continue
        if isinstance(report, dict):
            return report
    return None


def archive(folder, path):
    """All records and logs as one file, which a machine whose results are fetched one by one gives back in one piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".next")
    with tarfile.open(beside, "w:gz") as tar:
        for file in sorted(folder.iterdir()):
            if file.suffix in (".json", ".log", ".md"):
                tar.add(file, arcname=file.name)
    beside.replace(path)


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
    # Its lines at once: it is ended with a signal, which loses what it has not written.
    unbuffered = ["stdbuf", "-oL"] if shutil.which("stdbuf") else []
    query = [*unbuffered, "nvidia-smi", "--query-gpu=" + ",".join(SAMPLED), "--format=csv,noheader,nounits", "--id=0", "--loop-ms=500"]
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
