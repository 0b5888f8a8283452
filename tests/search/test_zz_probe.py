import time, os, pytest
from pathlib import Path
@pytest.mark.parametrize("k",[0,1])
def test_a(ray_session,tiny_features,tiny_space,tmp_path,k):
    from grcf_ray.search.stages import Search
    from grcf_ray.search.record import RunRecord
    from grcf_ray.search.space import load_space
    sp=load_space(tiny_space).with_settings({"search.stage1_trials":1,"search.stage2_trials":1})
    t=time.time()
    def l(e): print(type(e).__name__, round(time.time()-t,2))
    Search(record=RunRecord(tmp_path),space=sp,features=tiny_features,protocol="mosi",concurrent=1,listeners=(l,)).run()
