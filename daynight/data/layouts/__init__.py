"""How published data sets lie on disk: a file for each, and the list of them."""

from daynight.data.layouts.acdc import ACDC
from daynight.data.layouts.bdd100k import BDD100K
from daynight.data.layouts.cityscapes import Cityscapes
from daynight.data.layouts.dark_zurich import DarkZurich
from daynight.data.layouts.folder import Folder
from daynight.data.layouts.idd import IDD
from daynight.data.layouts.kitti import KITTI
from daynight.data.layouts.mapillary_vistas import MapillaryVistas
from daynight.data.layouts.nightcity import NightCity
from daynight.data.layouts.nighttime_driving import NighttimeDriving

# A folder has the first layout that recognises it, so a narrower rule comes before a wider one.
LAYOUTS = (NighttimeDriving, IDD, Cityscapes, ACDC, DarkZurich, BDD100K, MapillaryVistas, KITTI, NightCity, Folder)
