import os

# nothing here renders: dm_control's suite, the oracle, need not look for a display
os.environ.setdefault("MUJOCO_GL", "disabled")
