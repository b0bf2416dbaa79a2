"""Jobs on a real Dask cluster: its scheduler and our workers are processes of this machine."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import cloudpickle
import numpy as np
import psutil
import pytest
from conftest import EXAMPLES, ROOT, environment
from distributed import Client

from mlip_pace.errors import ClusterError, TimeLimitError, WorkerError
from mlip_pace.publish.potential import Potential
from mlip_pace.run import cluster, pool, worker
from mlip_pace.run.steps import sha256

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not know the tests
PATIENCE = 120.0  # s, of a machine with more to do


def until(condition, patience=PATIENCE):
    """Wait for it; what it says in the end."""
    end = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


class Place:
    """A scheduler, its workers, and an output path."""

    def __init__(self, folder, **environ):
        self.folder, self.output, self.environ = folder, folder / "out", environ
        self.file = folder / "scheduler.json"
        self.processes = []
        self.said = []

    def start(self, *command, environ=None, **more):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLIP_PACE_")}
        given = inherited | self.environ | {"MLIP_PACE_RUN_SCHEDULER": str(self.file)} | (environ or {})
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            started = subprocess.Popen(
                [sys.executable, *command], env=given, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **more
            )
        self.processes.append(started)
        return started

    def scheduler(self, *options):
        self.file.unlink(missing_ok=True)
        address = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0", "--no-dashboard"]
        started = self.start(
            "-m", "distributed.cli.dask_scheduler", *address, "--scheduler-file", str(self.file), *options,
            environ={"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "6 s", "DASK_DISTRIBUTED__WORKER__HEARTBEAT": "1 s"},
        )  # fmt: skip
        until(self.file.exists)
        return started

    def worker(self, count=1, **environ):
        given = {f"MLIP_PACE_{name}": value for name, value in environ.items()}
        return self.start("-m", "mlip_pace.cli", "worker", environ={"MLIP_PACE_RUN_THREADS": str(count), **given})

    def client(self):
        return Client(json.loads(self.file.read_text())["address"], set_as_default=False, timeout=10)

    def until_there(self, count):
        with self.client() as client:
            client.wait_for_workers(count, timeout=PATIENCE)

    def tasks(self):
        """Those that the scheduler knows of."""
        with self.client() as client:
            return [key for keys in client.processing().values() for key in keys] + list(client.who_has())

    @contextmanager
    def connected(self, files=(EXAMPLES,), deadline=math.inf):
        with cluster.connected(str(self.file), self.output, files, self.said.append, deadline) as found:
            yield found

    def end(self):
        for started in reversed(self.processes):
            for one in [*children(started), started]:
                try:
                    os.kill(one.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            started.wait()


def children(started):
    """The processes that compute, of a worker program."""
    try:
        found = psutil.Process(started.pid).children(recursive=True)
        return [one for one in found if "spawn_main" in " ".join(one.cmdline())]
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def place(tmp_path):
    with ExitStack() as stack:
        made = Place(tmp_path)
        stack.callback(made.end)
        yield made


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A cluster with two workers, which no test harms."""
    with ExitStack() as stack:
        made = Place(tmp_path_factory.mktemp("two"))
        stack.callback(made.end)
        made.scheduler()
        made.worker(2)
        made.until_there(2)
        yield made


def test_results_come_in_the_order_of_the_items(two):
    def late(n):
        time.sleep(0.02 * (n % 3 == 0))
        return n**2

    with two.connected() as workers:
        assert list(pool.parallel_map(late, range(150), workers)) == [n**2 for n in range(150)]
        assert list(pool.parallel_map(late, [7], workers)) == [49]
        assert list(pool.parallel_map(late, [], workers)) == []
    assert not two.tasks()
    assert not list(two.output.glob("work/.cluster-*"))


def test_sums_have_the_bits_of_one_process(two):
    """Whatever the number of items, and in whatever order the workers end."""
    groups = [list(np.random.default_rng(n).normal(size=n) * 10.0 ** np.arange(n)[::-1] ** 0.5) for n in (1, 9, 150, 700)]

    def late(x):
        time.sleep(0.002 * (np.sin(x) > 0.9))
        return np.array([x, np.sqrt(abs(x))])

    with two.connected() as workers:
        found = pool.parallel_sums(late, groups, workers)
    for ours, theirs in zip(found, pool.parallel_sums(late, groups, 1), strict=True):
        assert ours.tobytes() == theirs.tobytes()
    assert not two.tasks()


def test_what_a_task_raises_is_raised(two):
    class Known(Exception):
        pass

    def fail(n):
        if n >= 4:
            raise Known(f"item {n}", n)
        return n

    with two.connected() as workers:
        with pytest.raises(Known) as raised:
            list(pool.parallel_map(fail, range(8), workers))
        assert raised.value.args == ("item 4", 4)
        with pytest.raises(Known):
            pool.parallel_sums(fail, [range(3), range(100)], workers)
        assert list(pool.parallel_map(abs, [-1, 2], workers)) == [1, 2]  # and the cluster is as before
    assert not two.tasks()


def test_a_map_that_is_left_leaves_no_task(two):
    with two.connected() as workers:
        results = pool.parallel_map(lambda n: time.sleep(0.1) or n, range(300), workers)
        assert next(results) == 0
        results.close()
        until(lambda: not two.tasks(), 5)


def test_the_job_listens_to_nobody(two):
    ours = {sock.laddr for sock in psutil.Process().net_connections() if sock.status == psutil.CONN_LISTEN}
    with two.connected() as workers:
        assert list(pool.parallel_map(abs, range(9), workers)) == list(range(9))
        assert {sock.laddr for sock in psutil.Process().net_connections() if sock.status == psutil.CONN_LISTEN} == ours


def test_the_cluster_listens_where_it_was_told(two):
    """The scheduler, started on 127.0.0.1, there alone; of the workers only what others of the cluster speak to."""
    for started in two.processes:
        for one in [psutil.Process(started.pid), *children(started)]:
            addresses = [sock.laddr.ip for sock in one.net_connections() if sock.status == psutil.CONN_LISTEN]
            assert set(addresses) <= {"127.0.0.1"}, one.cmdline()


def test_killed_workers_change_nothing(place):
    """One killed in mid-stage, then all at once; Dask's nanny starts them again."""
    place.scheduler()
    program = place.worker(2)
    place.until_there(2)
    items = list(np.random.default_rng(3).normal(size=400))

    def cube(x):
        return np.float64(x) ** 3

    def slow(x):
        time.sleep(0.02)
        return cube(x)

    def kill():
        time.sleep(0.5)
        children(program)[0].kill()
        time.sleep(1.5)
        for one in children(program):
            one.kill()

    with place.connected() as workers:
        threading.Thread(target=kill).start()
        found = pool.parallel_sums(slow, [items], workers)
    assert found == pool.parallel_sums(cube, [items], 1)


def test_without_a_worker_it_waits_and_goes_on(place):
    place.scheduler()
    program = place.worker()
    place.until_there(1)

    def slow(n):
        time.sleep(0.05)
        return n

    def replace():
        time.sleep(0.5)
        os.killpg(program.pid, signal.SIGKILL)
        until(lambda: "the cluster has no worker: waiting for one" in place.said)
        place.worker()

    with place.connected() as workers:
        threading.Thread(target=replace).start()
        assert list(pool.parallel_map(slow, range(60), workers)) == list(range(60))
    first, *then = place.said
    assert re.fullmatch(r"workers of the cluster at tcp://127.0.0.1:\d+: 1", first)
    assert then == ["the cluster has no worker: waiting for one", "the cluster has workers, 1: going on"]


def test_the_time_limit_holds_without_a_worker(place):
    place.scheduler()
    begin = time.monotonic()
    with pytest.raises(TimeLimitError), place.connected(deadline=begin + 2):
        pass
    assert 2 < time.monotonic() - begin < 5
    assert not list(place.output.glob("work/.cluster-*"))


def test_the_time_limit_holds_when_all_workers_are_lost(place, monkeypatch):
    """With results that only they had."""
    monkeypatch.setattr(cluster, "FETCH", 1)
    place.scheduler()
    program = place.worker()
    place.until_there(1)
    with place.connected(deadline=time.monotonic() + 6) as workers:
        results = pool.parallel_map(abs, range(16), workers)
        assert next(results) == 0
        time.sleep(1)
        os.killpg(program.pid, signal.SIGKILL)
        with pytest.raises(TimeLimitError):
            list(results)


def test_a_worker_that_stands_still_is_not_waited_for(place):
    """Its chunk goes to one that is idle."""
    place.scheduler()
    program = place.worker(2)
    place.until_there(2)

    def stop():
        time.sleep(0.7)
        children(program)[0].send_signal(signal.SIGSTOP)

    def slow(n):
        time.sleep(0.05)
        return n

    begin = time.monotonic()
    with place.connected() as workers:
        threading.Thread(target=stop).start()
        assert list(pool.parallel_map(slow, range(80), workers)) == list(range(80))
        assert pool.parallel_sums(slow, [range(100)], workers) == [4950]
    assert time.monotonic() - begin < 40


def test_a_lost_scheduler_is_said(place):
    scheduler = place.scheduler()
    place.worker()
    place.until_there(1)

    def slow(n):
        time.sleep(0.05)
        return n

    with place.connected() as workers:
        results = pool.parallel_map(slow, range(200), workers)
        next(results)
        scheduler.kill()
        with pytest.raises(ClusterError) as lost:
            list(results)
    assert lost.value.code == 68
    assert lost.value.resumable
    assert "is lost" in lost.value.message
    assert not list(place.output.glob("work/.cluster-*"))


def test_a_scheduler_lost_before_the_first_task_is_said(place):
    """Dask itself would wait a minute for another one."""
    scheduler = place.scheduler()
    program = place.worker()
    place.until_there(1)
    with place.connected() as workers:
        (process,) = children(program)
        process.send_signal(signal.SIGSTOP)
        asked = threading.Thread(target=lambda: (until(place.tasks), scheduler.kill()))
        asked.start()
        begin = time.monotonic()
        with pytest.raises(ClusterError, match="is lost"), place.connected():
            pass
        asked.join()
        with pytest.raises(ClusterError, match="is lost"):
            list(pool.parallel_map(abs, range(3), workers))
        assert time.monotonic() - begin < 30


def test_no_scheduler_is_said(place, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT", 1)
    for scheduler in ("tcp://127.0.0.1:9", str(place.folder / "none.json")):
        with pytest.raises(ClusterError, match="no scheduler answers"), cluster.connected(
            scheduler, place.output, [], place.said.append, math.inf
        ):  # fmt: skip
            pass
    assert not list(place.output.glob("work/.cluster-*"))


def test_a_task_that_kills_its_workers_is_given_up(place):
    """As one does that needs more memory than there is."""
    place.scheduler()
    place.worker(2)
    place.until_there(2)

    def fatal(n):
        return n if n < 9 else os._exit(1)

    with place.connected() as workers, pytest.raises(WorkerError, match="killed over and over") as killed:
        pool.parallel_sums(fatal, [range(20)], workers)
    assert killed.value.code == 76
    assert "MLIP_PACE_RUN_THREADS" in killed.value.hint


def test_a_worker_needs_a_scheduler(place):
    place.start("-m", "mlip_pace.cli", "worker", environ={"MLIP_PACE_RUN_SCHEDULER": ""}).wait(PATIENCE)
    said = json.loads((place.folder / "0.log").read_text().splitlines()[-1])
    assert said["code"] == 64
    assert "MLIP_PACE_RUN_SCHEDULER" in said["message"]


def other_code(place):
    """A copy of our package that differs in a comment."""
    shutil.copytree(ROOT / "mlip_pace", place.folder / "other" / "mlip_pace")
    with (place.folder / "other" / "mlip_pace" / "arrays.py").open("a") as file:
        file.write("# another version\n")
    program = ["-m", "distributed.cli.dask_worker", "--scheduler-file", str(place.file), "--nthreads", "1"]
    return place.start(*program, environ={"PYTHONPATH": str(place.folder / "other")})


def test_a_worker_of_another_version_is_refused_by_name(place):
    place.scheduler()
    other_code(place)
    place.until_there(1)
    with pytest.raises(WorkerError, match="cannot take part: it has code of mlip-pace") as refused:
        place.connected().__enter__()
    assert re.match(r"the worker tcp://127.0.0.1:\d+ on \S+ cannot", refused.value.message)
    assert refused.value.code == 76
    assert refused.value.resumable


def without_our_package(place):
    """As on a node with Dask and another Python environment."""
    (place.folder / "none" / "mlip_pace").mkdir(parents=True)
    (place.folder / "none" / "mlip_pace" / "__init__.py").write_text("raise ModuleNotFoundError(__name__)")
    program = ["-m", "distributed.cli.dask_worker", "--scheduler-file", str(place.file), "--nthreads", "1"]
    return place.start(*program, environ={"PYTHONPATH": str(place.folder / "none")})


@pytest.mark.parametrize("misfit", [other_code, without_our_package])
def test_a_worker_that_comes_later_and_does_not_fit_is_put_out_of_use(place, misfit):
    place.scheduler()
    place.worker()
    place.until_there(1)

    def slow(n):
        time.sleep(0.05)
        return n

    with place.connected() as workers:
        results = pool.parallel_map(slow, range(400), workers)
        next(results)
        other = misfit(place)
        until(lambda: next(results) and other.poll() is not None)
        results.close()
        assert pool.parallel_sums(slow, [range(100)], workers) == [4950]
    if misfit is other_code:  # the other one ends by itself: it cannot read what it is sent
        assert re.search("it has code of mlip-pace .* it is put out of use", place.said[1])


@pytest.mark.parametrize("case", ["output", "data"])
def test_a_worker_that_does_not_see_the_files_is_refused(two, tmp_path, case):
    """The worker is on this machine, so what it cannot see is what is not there any more."""
    data = tmp_path / "data.xyz"
    data.write_text("1")
    with ExitStack() as stack:
        client = stack.enter_context(cluster._client(str(two.file)))
        folder = two.output / "work" / ".cluster-x"
        folder.mkdir(parents=True)
        stack.callback(shutil.rmtree, folder)
        (folder / worker.TOKEN).write_text("x" if case == "data" else "y")
        ticket = worker.Ticket(folder, f"x{case}"[:1], {str(data): 1 if case == "output" else 2}, worker.programs())
        found = cluster.DaskCluster(client, ticket, two.said.append, math.inf)
        with pytest.raises(WorkerError, match="is another one" if case == "output" else "has 1 bytes, the job's 2"):
            found.refuse_misfits()


# With a search for the cutoff, and a choice of structures.
JOB = {
    "BASIS_CUTOFF": None,
    "SELECTION_MAX_STRUCTURES": 60,
    "BASIS_FUNCTIONS": 60,
    "BASIS_BODY_ORDER": None,
    "TRAINING_OPTIMIZER": None,
    "TRAINING_MAX_EPOCHS": 3,
    "RUN_THREADS": 1,
}


def job(place, output, **settings):
    """A whole job as a process of its own, on the cluster or not."""
    env = environment(output, **JOB, **settings)
    with (place.folder / f"{output.name}.out").open("w") as log:
        return subprocess.Popen([sys.executable, "-m", "mlip_pace.cli"], env=env, stdout=log, stderr=subprocess.STDOUT)


def last(place, output):
    return json.loads((place.folder / f"{output.name}.out").read_text().splitlines()[-1])


@pytest.mark.slow
def test_a_job_has_the_bits_of_one_machine(two):
    here, there = two.folder / "here", two.folder / "there"
    with ExitStack() as stack:
        jobs = [job(two, here), job(two, there, RUN_SCHEDULER=two.file)]
        stack.callback(lambda: [one.kill() for one in jobs])
        assert [one.wait(180) for one in jobs] == [0, 0], last(two, there)
    assert sha256(here / "potential.yace") == sha256(there / "potential.yace")
    assert sha256(here / "potential.asi") == sha256(there / "potential.asi")
    assert sha256(here / "potential.uncertainty.npy") == sha256(there / "potential.uncertainty.npy")
    found = [Potential.load(path / "potential.json").metadata for path in (here, there)]
    assert found[0]["errors"] == found[1]["errors"]
    assert found[0]["uncertainty"] == found[1]["uncertainty"]
    assert found[0]["fingerprint"] == found[1]["fingerprint"]
    assert not two.tasks()


@pytest.mark.slow
def test_a_job_ends_with_its_signal_and_goes_on_without_its_scheduler(place):
    scheduler = place.scheduler()
    place.worker(2)
    place.until_there(2)
    output = place.folder / "stopped"

    def at_work(stage):
        ours = [key for key in place.tasks() if not key.startswith("show-")]  # the first question to workers
        return (output / "work" / f"{stage}.part").exists() and ours

    running = job(place, output, RUN_SCHEDULER=place.file)
    until(lambda: at_work("5-train"))
    running.terminate()
    begin = time.monotonic()
    assert running.wait(20) == 143
    assert time.monotonic() - begin < 8
    until(lambda: not place.tasks(), 5)
    running = job(place, output, RUN_SCHEDULER=place.file)
    until(lambda: at_work("5-train"))
    scheduler.kill()
    assert running.wait(PATIENCE) == 68
    assert last(place, output)["resumable"]
    assert job(place, output).wait(180) == 0
    assert last(place, output)["code"] == 0


def test_everything_is_encrypted_with_the_certificate_of_the_page(tmp_path):
    """docs/howto/cluster.md and deploy/tls.env, here in another folder than /tls; who has another certificate is not let in."""
    settings = [line for line in (ROOT / "deploy" / "tls.env").read_text().splitlines() if not line.startswith("#")]
    assert "\n".join(settings) in (ROOT / "deploy" / "slurm" / "cluster.sh").read_text()
    page = (ROOT / "docs" / "howto" / "cluster.md").read_text()
    (script,) = re.findall(r"```sh\n(.*?openssl.*?)```", page, re.DOTALL)
    for folder in ("ours", "others"):
        (tmp_path / folder).mkdir()
        subprocess.run(["sh", "-euc", script], cwd=tmp_path / folder, check=True, capture_output=True)
    assert (tmp_path / "ours" / "tls" / "key.pem").stat().st_mode & 0o77 == 0

    def tls(folder):
        return dict(line.replace("/tls/", f"{tmp_path / folder / 'tls'}/").split("=") for line in settings)

    code = (
        "import math, sys; from pathlib import Path; from mlip_pace.run import cluster, pool\n"
        "cluster.CONNECT = 3\n"
        "with cluster.connected(sys.argv[1], Path('out'), [], print, math.inf) as workers:\n"
        "    print(sum(pool.parallel_map(abs, range(9), workers)))\n"
    )
    with ExitStack() as stack:
        place = Place(tmp_path, **tls("ours"))
        stack.callback(place.end)
        place.scheduler("--protocol", "tls")
        place.worker()
        address = json.loads(place.file.read_text())["address"]
        assert address.startswith("tls://127.0.0.1:")
        for environ, where, said in (
            (tls("ours"), address, "36"),
            (tls("others"), address, "ClusterError: no scheduler answers"),
            ({}, address.replace("tls://", "tcp://"), "ClusterError: no scheduler answers"),
            ({}, address, "SettingsError: the scheduler tls"),
        ):
            command = [sys.executable, "-c", code, where]
            done = subprocess.run(command, env=os.environ | environ, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert said in (done.stdout if said == "36" else done.stderr), done.stdout + done.stderr
            assert (done.returncode == 0) == (said == "36")
