"""A run that reads from and writes to a local server of the S3 protocol."""

from dataclasses import replace

import pytest
from test_pseudo_label_runs import BATCH, OUTPUTS, build_tiny, collection, contents, uninterrupted  # noqa: F401

from dcsm_attr.datasets.collection import Collection
from dcsm_attr.io import open_storage, read_uri
from dcsm_attr.pipelines.report import write_report
from dcsm_attr.pipelines.run import pseudo_label


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("pyarrow", reason="needs pyarrow, which comes with the extra ray")
    server = pytest.importorskip("moto.server", reason="needs moto: pip install 'dcsm_attr[s3]'")
    running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def bucket(server, monkeypatch, request):
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    bucket = boto3.resource("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").Bucket("images")
    client.create_bucket(Bucket="images")
    yield bucket, f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    bucket.objects.delete()


def stored(bucket, folder):
    return {
        one.key.removeprefix(f"{folder}/"): one.get()["Body"].read() for one in bucket.objects.filter(Prefix=folder)
    }


def test_objects_have_the_content_that_was_written(bucket):
    bucket, query = bucket
    storage = open_storage(f"s3://images/run{query}")
    assert storage.names("labels") == set()
    storage.write("labels/a.png", b"one")
    storage.write("labels/a.png", b"two")
    storage.write("labels/b.png", b"")
    assert storage.names("labels") == {"a.png", "b.png"}
    assert storage.read("labels/a.png") == b"two"
    assert stored(bucket, "run") == {"labels/a.png": b"two", "labels/b.png": b""}
    with pytest.raises(FileNotFoundError):
        read_uri(f"s3://images/run/labels/c.png{query}")


def test_a_run_resumes_and_writes_the_same_files(bucket, collection, uninterrupted):  # noqa: F811
    bucket, query = bucket
    items = []
    for item in collection:
        bucket.put_object(Key=f"originals/{item.path.name}", Body=item.path.read_bytes())
        items.append(replace(item, path=f"s3://images/originals/{item.path.name}{query}"))
    remote = Collection(collection.class_names, tuple(items))
    storage = open_storage(f"s3://images/run{query}")
    calls = []

    def build_failing():
        segmenter = build_tiny()
        original = segmenter.attribute_batch

        def attribute_batch(images):
            calls.append(images)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(images)

        segmenter.attribute_batch = attribute_batch
        return segmenter

    options = {"outputs": OUTPUTS, "batch_size": BATCH, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(build_failing, remote, storage, **options)
    assert storage.names("parts") == {"00000000.jsonl"}
    assert pseudo_label(build_tiny, remote, storage, **options).labeled == len(collection)
    write_report(storage)
    found = stored(bucket, "run")
    expected = {name: content for name, content in contents(uninterrupted).items() if name != "settings.json"}
    assert {name: found[name] for name in expected} == expected
    assert b"p3" in found["report.html"]
    expected_names = ("labels/", "maps/", "overlays/", "parts/", "manifest.jsonl", "settings.json", "report.html")
    assert all(name.startswith(expected_names) and not name.endswith("/") for name in found)
