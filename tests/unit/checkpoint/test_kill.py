import json
import subprocess
import sys


def test_a_save_killed_at_any_call_to_the_disk_leaves_only_whole_checkpoints(tmp_path):
    command = [sys.executable, "-m", "tests.unit.checkpoint.kill_driver", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 40 and [row["killed"] for row in rows] == [True] * (len(rows) - 1) + [False]
    for row in rows:
        published = "step_00000002" in row["left"]
        assert row["chosen"] == ("step_00000002" if published else "step_00000001"), row
        assert all(row["sound"].values()), row
        # The next save clears what the dead one left.
        assert row["after"] == ["latest", "step_00000001", "step_00000002"] or published, row
        assert row["chosen_after"] == "step_00000002"
    assert sum("step_00000002.writing" in row["left"] for row in rows) > 40
    # Killed between the rename and `latest`: found by looking at folders.
    assert sum("step_00000002" in row["left"] and row["killed"] for row in rows) >= 2
