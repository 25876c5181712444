"""Holds nas-server against the official Python client of the NAS API, whose signatures, models and
errors are real.

Usage: official_client.py ENDPOINT TEMPORARY_ENDPOINT TOKEN: the first server accepts the access key
`id` with `secret`, the second one the same with a token. Both run an hour in a second.
"""

import sys
import time
import traceback
from urllib.parse import urlparse

from alibabacloud_nas20170626 import models
from alibabacloud_nas20170626.client import Client
from alibabacloud_tea_openapi.exceptions import AlibabaCloudException
from alibabacloud_tea_openapi.utils_models import Config

ENDPOINT, TEMPORARY_ENDPOINT, TOKEN = sys.argv[1:]
FILE_SYSTEM = "bmcpfs-1"

results = []


def client(endpoint=ENDPOINT, **config):
    config = {"access_key_id": "id", "access_key_secret": "secret", **config}
    return Client(Config(endpoint=urlparse(endpoint).netloc, protocol="http",
                         region_id="cn-wulanchabu", **config))


NAS = client()


def check(run):
    name = run.__name__.replace("_", " ")
    try:
        run()
        results.append(True)
        print(f"{name} ok", flush=True)
    except Exception:
        results.append(False)
        print(f"{name} FAILED", flush=True)
        traceback.print_exc()


def equal(found, expected):
    assert found == expected, f"{found!r} is not {expected!r}"


def refused(status, code, call):
    """The error, as the client shows it."""
    try:
        call()
    except AlibabaCloudException as error:
        equal((error.status_code, error.code), (status, code))
        assert error.request_id.startswith("473469C7-"), error.request_id
        assert error.request_id in error.message, error.message
        equal(error.data["Code"], code)
        return error
    raise AssertionError(f"not refused with {code}")


def until(expected, seen):
    """Waits for a state."""
    for _ in range(500):
        found = seen()
        if found == expected:
            return
        time.sleep(0.02)
    raise AssertionError(f"{found!r} does not become {expected!r}")


def new_flow(token, **changes):
    asked = {
        "file_system_id": FILE_SYSTEM, "file_system_path": "/data/", "source_storage": "oss://models",
        "source_storage_path": "/a b/ü+&=%/", "source_security_type": "SSL", "throughput": 600,
        "description": "ossvp:claim_1-x", "client_token": token, **changes,
    }
    return models.CreateDataFlowRequest(**asked)


def new_task(flow, token, **changes):
    asked = {
        "file_system_id": FILE_SYSTEM, "data_flow_id": flow, "task_action": "Import",
        "directory": "/", "dst_directory": "/sub/", "create_dir_if_not_exist": True,
        "data_type": "MetaAndData", "conflict_policy": "OVERWRITE_EXISTING", "client_token": token,
        **changes,
    }
    return models.CreateDataFlowTaskRequest(**asked)


def flows(**filters):
    filters = [models.DescribeDataFlowsRequestFilters(key=k, value=v) for k, v in filters.items()]
    request = models.DescribeDataFlowsRequest(
        file_system_id=FILE_SYSTEM, filters=filters or None, max_results=100)
    body = NAS.describe_data_flows(request).body
    assert body.request_id
    return body.data_flow_info.data_flow


def tasks(flow, **more):
    filters = [models.DescribeDataFlowTasksRequestFilters(key="DataFlowIds", value=flow)]
    request = models.DescribeDataFlowTasksRequest(
        file_system_id=FILE_SYSTEM, filters=filters, **{"max_results": 100, **more})
    return NAS.describe_data_flow_tasks(request).body


def flow_status(id):
    return next((flow.status for flow in flows(DataFlowIds=id)), None)


def running_flow(token):
    id = NAS.create_data_flow(new_flow(token)).body.data_flow_id
    until("Running", lambda: flow_status(id))
    return id


def delete(id, token):
    return NAS.delete_data_flow(models.DeleteDataFlowRequest(
        file_system_id=FILE_SYSTEM, data_flow_id=id, client_token=token))


def cancel(flow, task, token):
    return NAS.cancel_data_flow_task(models.CancelDataFlowTaskRequest(
        file_system_id=FILE_SYSTEM, data_flow_id=flow, task_id=task, client_token=token))


def a_data_flow_from_its_creation_to_its_end():
    id = running_flow("flow")
    [flow] = flows(DataFlowIds=id, Status="Running", Description="claim_1")
    equal((flow.data_flow_id, flow.file_system_id, flow.file_system_path),
          (id, FILE_SYSTEM, "/data/"))
    equal((flow.source_storage, flow.source_storage_path), ("oss://models", "/a b/ü+&=%/"))
    equal((flow.source_security_type, flow.throughput), ("SSL", 600))
    equal((flow.description, flow.error_message), ("ossvp:claim_1-x", "None"))
    assert flow.create_time and flow.update_time
    assert delete(id, "delete").body.request_id
    until([], flows)


def a_task_from_its_creation_to_its_end():
    flow = running_flow("task-flow")
    id = NAS.create_data_flow_task(new_task(flow, "task")).body.task_id
    until("Completed", lambda: tasks(flow).task_info.task[0].status)
    [task] = tasks(flow).task_info.task
    equal((task.task_id, task.data_flow_id, task.filesystem_id), (id, flow, FILE_SYSTEM))
    equal((task.task_action, task.data_type), ("Import", "MetaAndData"))
    equal((task.directory, task.dst_directory), ("/", "/sub/"))
    equal((task.conflict_policy, task.originator), ("OVERWRITE_EXISTING", "User"))
    stats = task.progress_stats
    equal((task.progress, stats.files_total, stats.files_done), (100, 100, 100))
    equal((stats.bytes_total, stats.bytes_done, stats.actual_bytes), (100 << 20,) * 3)
    equal(task.reports.report, [])
    equal(tasks(flow, with_reports=False).task_info.task[0].reports, None)
    delete(flow, "task-delete")
    until([], flows)


def a_task_that_is_canceled():
    flow = running_flow("cancel-flow")
    id = NAS.create_data_flow_task(new_task(flow, "to-cancel")).body.task_id
    assert cancel(flow, id, "cancel").body.request_id
    refused(403, "OperationDenied.DependencyViolation", lambda: delete(flow, "too-early"))
    until("Canceled", lambda: tasks(flow).task_info.task[0].status)
    refused(403, "OperationDenied.ConflictOperation", lambda: cancel(flow, id, "cancel-2"))
    refused(404, "InvalidTaskId.NotFound", lambda: cancel(flow, "task-0", "cancel-3"))
    delete(flow, "cancel-delete")
    until([], flows)


def filesets_by_pages():
    found, token = [], None
    for pages in range(1, 10):
        body = NAS.describe_filesets(models.DescribeFilesetsRequest(
            file_system_id=FILE_SYSTEM, max_results=10, next_token=token)).body
        found += body.entries.entrie
        token = body.next_token
        if not token:
            break
    equal((pages, body.file_system_id), (3, FILE_SYSTEM))
    equal([one.fset_id for one in found], [f"fset-{n}" for n in range(10, 35)])
    equal((found[0].file_system_path, found[0].status), ("/filesets/10/", "CREATED"))
    filters = [models.DescribeFilesetsRequestFilters(key="FsetIds", value="fset-11,fset-12")]
    body = NAS.describe_filesets(models.DescribeFilesetsRequest(
        file_system_id=FILE_SYSTEM, filters=filters)).body
    equal([one.fset_id for one in body.entries.entrie], ["fset-11", "fset-12"])


def data_flows_and_tasks_by_pages():
    flow = running_flow("pages-flow")
    made = [NAS.create_data_flow_task(new_task(flow, f"page-{n}")).body.task_id for n in range(12)]
    first = tasks(flow, max_results=10)
    rest = tasks(flow, max_results=10, next_token=first.next_token)
    equal(rest.next_token, None)
    found = first.task_info.task + rest.task_info.task
    equal([task.task_id for task in found], made)
    for size in 9, 101:
        refused(404, "InvalidParameter.InvalidMaxResults", lambda: tasks(flow, max_results=size))
    refused(404, "InvalidParameter.InvalidNextToken", lambda: tasks(flow, next_token="odd"))
    until({"Completed"}, lambda: {task.status for task in tasks(flow).task_info.task})
    delete(flow, "pages-delete")
    until([], flows)


def the_same_token_does_a_thing_once():
    ids = [NAS.create_data_flow(new_flow("once")).body.data_flow_id for _ in range(3)]
    equal((len(set(ids)), len(flows())), (1, 1))
    refused(400, "IdempotentParameterMismatch",
            lambda: NAS.create_data_flow(new_flow("once", throughput=1200)))
    until("Running", lambda: flow_status(ids[0]))
    once = [NAS.create_data_flow_task(new_task(ids[0], "once")).body.task_id for _ in range(3)]
    equal((len(set(once)), len(tasks(ids[0]).task_info.task)), (1, 1))
    until("Completed", lambda: tasks(ids[0]).task_info.task[0].status)
    delete(ids[0], "delete-once")
    delete(ids[0], "delete-once")
    until([], flows)


def what_is_wrong_is_refused():
    for status, code, changes in [
        (400, "MissingFileSystemPath", {"file_system_path": None}),
        (400, "MissingSourceStoragePath", {"source_storage_path": None}),
        (400, "MissingSourceStorage", {"source_storage": None}),
        (400, "InvalidParameter", {"source_storage_path": "/a"}),
        (400, "InvalidParameter", {"file_system_path": "data/"}),
        (400, "InvalidParameter", {"client_token": "t" * 65}),
        (404, "InvalidFileSystemPath.NotFound", {"file_system_path": "/nowhere/"}),
        (404, "InvalidThroughput.OutOfBounds", {"throughput": 700}),
        (404, "InvalidDescription.InvalidFormat", {"description": "http://x"}),
        (404, "InvalidFileSystem.NotFound", {"file_system_id": "bmcpfs-0"}),
        (404, "InvalidSourceStorage.NotFound", {"source_storage": "oss://nowhere"}),
        (404, "InvalidSourceStorage.NotSupport", {"source_storage": "s3://models"}),
        (403, "OperationDenied.DependBucketTag", {"source_storage": "oss://untagged"}),
    ]:
        refused(status, code, lambda: NAS.create_data_flow(new_flow("wrong", **changes)))
    flow = NAS.create_data_flow(new_flow("wrong-task-flow")).body.data_flow_id
    # an hour takes a second: it may be running by now, where the machine is slow
    until("Running", lambda: flow_status(flow))
    for status, code, changes in [
        (400, "MissingConflictPolicy", {"conflict_policy": None}),
        (400, "MissingTaskAction", {"task_action": None}),
        (404, "InvalidTaskAction.NotSupported", {"task_action": "Evict"}),
        (404, "InvalidDataType.NotSupported", {"data_type": "Everything"}),
        (404, "InvalidDstDirectory.NotFound", {"dst_directory": "/new/",
                                               "create_dir_if_not_exist": False}),
        (400, "InvalidParameter", {"entry_list": '["/a"]'}),
    ]:
        refused(status, code, lambda: NAS.create_data_flow_task(new_task(flow, "wrong", **changes)))
    refused(404, "InvalidDataFlow.NotFound",
            lambda: NAS.create_data_flow_task(new_task("df-0", "wrong")))
    refused(404, "InvalidFilterParam", lambda: flows(Odd="x"))
    delete(flow, "wrong-delete")
    until([], flows)


def an_eleventh_data_flow_is_refused():
    ids = [NAS.create_data_flow(new_flow(f"many-{n}")).body.data_flow_id for n in range(10)]
    refused(403, "OperationDenied.DataFlowLimitExceeded",
            lambda: NAS.create_data_flow(new_flow("many-10")))
    until({"Running"}, lambda: {flow.status for flow in flows()})
    for id in ids:
        delete(id, f"delete-{id}")
    until([], flows)


def signatures_are_verified():
    request = models.DescribeDataFlowsRequest(file_system_id=FILE_SYSTEM)
    wrong = client(access_key_secret="wrong")
    refused(400, "SignatureDoesNotMatch", lambda: wrong.describe_data_flows(request))
    unknown = client(access_key_id="nobody")
    refused(404, "InvalidAccessKeyId.NotFound", lambda: unknown.describe_data_flows(request))
    temporary = client(TEMPORARY_ENDPOINT, security_token=TOKEN)
    equal(temporary.describe_data_flows(request).body.data_flow_info.data_flow, [])
    for token in None, "another":
        other = client(TEMPORARY_ENDPOINT, security_token=token)
        refused(400, "InvalidSecurityToken.Malformed", lambda: other.describe_data_flows(request))


for run in [
    a_data_flow_from_its_creation_to_its_end,
    a_task_from_its_creation_to_its_end,
    a_task_that_is_canceled,
    filesets_by_pages,
    data_flows_and_tasks_by_pages,
    the_same_token_does_a_thing_once,
    what_is_wrong_is_refused,
    an_eleventh_data_flow_is_refused,
    signatures_are_verified,
]:
    check(run)

print(f"{sum(results)} of {len(results)} passed")
sys.exit(0 if all(results) else 1)
