"""A run from and to a server that speaks S3's protocol, on this machine."""

from dataclasses import replace

import pytest
from test_pseudo_label_runs import BATCH, OUTPUTS, collection, contents, run, tiny, undisturbed  # noqa: F401

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
    bucket = boto3.resource("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").Bucket("pictures")
    client.create_bucket(Bucket="pictures")
    yield bucket, f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    bucket.objects.delete()


def stored(bucket, folder):
    return {
        one.key.removeprefix(f"{folder}/"): one.get()["Body"].read() for one in bucket.objects.filter(Prefix=folder)
    }


def test_objects_are_what_was_written_and_nothing_else(bucket):
    bucket, where = bucket
    storage = open_storage(f"s3://pictures/run{where}")
    assert storage.names("labels") == set()
    storage.write("labels/a.png", b"one")
    storage.write("labels/a.png", b"two")
    storage.write("labels/b.png", b"")
    assert storage.names("labels") == {"a.png", "b.png"}
    assert storage.read("labels/a.png") == b"two"
    assert stored(bucket, "run") == {"labels/a.png": b"two", "labels/b.png": b""}
    with pytest.raises(FileNotFoundError):
        read_uri(f"s3://pictures/run/labels/c.png{where}")


def test_a_run_goes_on_and_gives_the_same_files(bucket, collection, undisturbed):  # noqa: F811
    bucket, where = bucket
    there = []
    for photograph in collection:
        bucket.put_object(Key=f"photographs/{photograph.path.name}", Body=photograph.path.read_bytes())
        there.append(replace(photograph, path=f"s3://pictures/photographs/{photograph.path.name}{where}"))
    there = Collection(collection.class_names, tuple(there))
    storage = open_storage(f"s3://pictures/run{where}")
    calls = []

    def dying():
        segmenter = tiny()
        attributed = segmenter.attribute_batch

        def go(photographs):
            calls.append(photographs)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return attributed(photographs)

        segmenter.attribute_batch = go
        return segmenter

    options = {"outputs": OUTPUTS, "batch_size": BATCH, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(dying, there, storage, **options)
    assert storage.names("parts") == {"00000000.jsonl"}
    assert pseudo_label(tiny, there, storage, **options).labeled == len(collection)
    write_report(storage)
    found = stored(bucket, "run")
    expected = {name: content for name, content in contents(undisturbed).items() if name != "settings.json"}
    assert {name: found[name] for name in expected} == expected
    assert b"p3" in found["report.html"]
    kinds = ("labels/", "maps/", "overlays/", "parts/", "manifest.jsonl", "settings.json", "report.html")
    assert all(name.startswith(kinds) and not name.endswith("/") for name in found)
