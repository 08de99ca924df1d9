"""What the environments of launchers and the arguments say about a process."""

import pytest

from shakegpt_jax.cli.launch import Launch, find_launch
from shakegpt_jax.errors import UserError

# As srun sets them for task 5 of 8 on 2 nodes.
SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "node[007-008]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
# As mpirun of Open MPI 4 sets them for rank 1 of 2 on 2 hosts.
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}


def find(environ=None, distributed=True, address=None, n=None, rank=None) -> Launch | None:
    return find_launch(
        distributed=distributed,
        coordinator_address=address,
        num_processes=n,
        process_id=rank,
        environ=environ or {},
    )


def test_slurm():
    launch = find(SLURM)
    host, port = launch.coordinator_address.split(":")
    assert host == "node007" and 61_440 <= int(port) < 65_536
    assert launch[1:] == (8, 5, [1])
    # Another step of the job has another port; all tasks of a step have the same.
    assert find(SLURM | {"SLURM_STEP_ID": "1"}).coordinator_address != launch.coordinator_address
    assert find(SLURM | {"SLURM_PROCID": "0"}).coordinator_address == launch.coordinator_address


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("a[2,4-5],c", "a2"), ("x-1-[09-11]", "x-1-09")],
)
def test_slurm_node_lists(nodes, first):
    address = find(SLURM | {"SLURM_STEP_NODELIST": nodes}).coordinator_address
    assert address.startswith(f"{first}:")


def test_a_process_takes_one_gpu_only_if_it_shares_them():
    assert find(SLURM | {"CUDA_VISIBLE_DEVICES": "3"}).local_device_ids is None
    assert find(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}).local_device_ids == [1]
    assert find(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}).local_device_ids is None
    assert find(OPEN_MPI).local_device_ids is None
    several = {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
    assert find(OPEN_MPI | several).local_device_ids == [1]


def test_open_mpi():
    launch = find(OPEN_MPI)
    assert launch.coordinator_address.startswith("10.96.0.1:")
    assert launch[1:3] == (2, 1)
    # Open MPI 5 does not say where mpirun runs, which matters only with several hosts.
    five = {k: v for k, v in OPEN_MPI.items() if "MCA" not in k}
    with pytest.raises(UserError, match=r"^Open MPI does not say --coordinator_address; give --co"):
        find(five)
    assert find(five, address="host:1234").coordinator_address == "host:1234"
    one_host = find(five | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    assert one_host.coordinator_address.startswith("127.0.0.1:")


def test_by_hand():
    assert find({}, False, "[::1]:1234", 3, 2) == Launch("[::1]:1234", 3, 2, None)
    assert find({}, False, "a:1", 1, 0) is None
    # Arguments win over the launcher.
    assert find(SLURM, True, "a:1", 4, 3)[:3] == ("a:1", 4, 3)


def test_one_process_needs_nothing():
    assert find({}, distributed=False) is None
    one = SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert find(one) is None and find(one, distributed=False) is None
    # A batch script, before srun.
    assert find({"SLURM_JOB_ID": "17", "SLURM_NTASKS": "8"}, distributed=False) is None


@pytest.mark.parametrize("environ", [SLURM, OPEN_MPI, {"PMI_SIZE": "2", "PMI_RANK": "0"}])
def test_several_processes_that_would_not_know_of_each_other(environ):
    with pytest.raises(UserError, match=r"started \d processes; add --distributed"):
        find(environ, distributed=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no launcher was found that says --coordinator_address and --num_processes and"),
        ({"n": 2, "rank": 0}, "no launcher was found that says --coordinator_address; give"),
        ({"address": "host", "n": 2, "rank": 0}, "'host'; it must be HOST:PORT"),
        ({"address": "host:0", "n": 2, "rank": 0}, "'host:0'; it must be HOST:PORT"),
        ({"address": "host:99999", "n": 2, "rank": 0}, "a port from 1 to 65535"),
        ({"address": "host:1", "n": 2, "rank": 2}, "--process_id is 2 and --num_processes 2"),
        ({"address": "host:1", "n": 2, "rank": -1}, "--process_id is -1"),
        ({"environ": SLURM | {"SLURM_PROCID": "x"}}, "SLURM_PROCID is 'x', not a number"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(UserError) as error:
        find(**arguments)
    assert message in str(error.value)


def test_other_launchers_do_not_say_where_the_first_process_is():
    with pytest.raises(UserError, match=r"^MPI does not say --coordinator_address"):
        find({"PMI_SIZE": "2", "PMI_RANK": "0"})
